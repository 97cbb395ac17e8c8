"""A model to N hosts: the relay against what else there is, over size / link rate, in network namespaces.

    python -m benchmarks.relay [--hosts 4,8,16] [--megabits 200] [--seconds 30] [--ways WAY,WAY]
    python -m benchmarks.relay --internet-megabits 50 --hosts 8      # the uplink is the bottleneck, and is counted
    python -m benchmarks.relay --real-disk --gigabytes 4 --hosts 4   # cold caches, synced; rate as the disk allows

Ways: bare, plain, tls, rsync, http, libtorrent. One head has the file, N hosts get it; every link is shaped both ways.
A ratio of 1 is the file's size at the link's raw rate; headers of TCP, IP and Ethernet alone cost 1.046. `bare` is a
byte chain of processes that check nothing: what this machine can do at most. Every copy is hashed again at the end.
Shaping by tc costs about as much CPU as relaying, and is counted in: --paced leaves it out and lets the head keep the
rate, for the figures of CPU time. Keep hosts x rate under what the processors can move, or the machine is measured.
Size = rate x seconds where it is not given. Needs root, `ip` and `tc`; what a fault costs: benchmarks/relay_faults.py.
"""

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import report
from benchmarks.relay_disk import drop_caches, link_rate_for, measure_disk, require_room
from benchmarks.relay_load import HEADER_TAX, Load, Outcome, prepare
from benchmarks.relay_product import measure_relay
from benchmarks.relay_rivals import measure_bare, measure_http, measure_libtorrent, measure_rsync, require

WAYS: dict[str, Callable[[Load, int], Outcome]] = {
    "bare": measure_bare,
    "plain": lambda load, hosts: measure_relay(load, hosts, False),
    "tls": lambda load, hosts: measure_relay(load, hosts, True),
    "rsync": measure_rsync,
    "http": measure_http,
    "libtorrent": measure_libtorrent,
}
DEFAULT_MEGABITS = 200.0
EXIT_OF_SIGTERM = 143


def show(load: Load, outcomes: list[Outcome], ways: list[str], counts: list[int], details: dict[str, object]) -> None:
    found = {(outcome.way, outcome.hosts): outcome for outcome in outcomes}
    rows = []
    for way in ways:
        cells = [found.get((way, count)) for count in counts]
        row = [way, *("-" if cell is None else f"{cell.ratio:.3f}" for cell in cells)]
        row += [cost_cell(load, cell) for cell in cells]
        rows.append([*row, *(uplink_cell(load, cell) for cell in cells)] if load.uplink else row)
    head = ["way", *(f"N={count}" for count in counts), *(f"CPU s/GiB user + system, N={count}" for count in counts)]
    if load.uplink:
        head += [f"over the uplink / size: hub, interface, with headers, N={count}" for count in counts]
    details |= {
        "size_bytes": load.size_bytes,
        "link_bytes_per_second": load.link,
        "uplink_bytes_per_second": load.uplink or None,
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    report("Wall time until every host has it verified, over size / rate", head, rows, details)


def cost_cell(load: Load, outcome: Outcome | None) -> str:
    cost = outcome.cpu_per_gib(load.size_bytes) if outcome else None
    return "-" if cost is None else f"{cost.total:.1f} = {cost.user:.1f} + {cost.system:.1f}"


def uplink_cell(load: Load, outcome: Outcome | None) -> str:
    if outcome is None or outcome.uplink is None:
        return "-"
    return ", ".join(f"{share:.4f}" for share in outcome.uplink.shares(load.size_bytes))


def show_parts(load: Load, outcome: Outcome) -> None:
    """Where a relay's time goes: to the first receiver (headers, start-up, last sync and rename), and hop by hop."""
    hop = outcome.hop_seconds()
    if outcome.first_seconds is None or hop is None:
        return
    beyond = outcome.first_seconds - load.ideal_seconds * HEADER_TAX
    print(
        f"{outcome.way} N={outcome.hosts}: {outcome.ratio:.3f} = {HEADER_TAX} headers"
        f" {beyond / load.ideal_seconds:+.3f} ({beyond * 1000:.0f} ms) until the first host has it"
        f" {hop * (outcome.hosts - 1) / load.ideal_seconds:+.3f} for {outcome.hosts - 1} hops of {hop * 1000:.1f}"
        f" ms, {outcome.piece_bytes / load.link * HEADER_TAX * 1000:.1f} ms of them for a piece of"
        f" {outcome.piece_bytes >> 10} KiB",
        file=sys.stderr,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="4,8,16")
    parser.add_argument("--megabits", type=float, help="rate of each host's link, both ways; 200, or by the real disk")
    parser.add_argument("--internet-megabits", type=float, default=0.0, help="rate of the hub's own link")
    parser.add_argument("--seconds", type=float, default=30.0, help="size of the file, as time on the slowest link")
    parser.add_argument("--megabytes", type=float, default=0.0, help="size of the file, instead of --seconds")
    parser.add_argument("--gigabytes", type=float, default=0.0, help="the same in 10^9 bytes")
    parser.add_argument("--piece-bytes", type=int, default=0, help="0: as the product chooses it")
    parser.add_argument("--paced", action="store_true", help="no shaping, the head keeps the rate: for the CPU column")
    parser.add_argument("--real-disk", action="store_true", help="refuse a folder in memory; cold caches; all synced")
    parser.add_argument("--ways", default="bare,plain,tls,rsync,http", help=", ".join(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to be used")
    given = parser.parse_args()
    try:
        given.counts, given.way_names = [int(part) for part in given.hosts.split(",")], given.ways.split(",")
    except ValueError:
        parser.error(f"--hosts are numbers, as in 4,8,16; not {given.hosts!r}")
    if unknown := [way for way in given.way_names if way not in WAYS]:
        parser.error(f"no such way: {', '.join(unknown)}; there are {', '.join(WAYS)}")
    if os.geteuid():
        parser.error("network namespaces need root")
    return given


def main() -> None:
    given = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_OF_SIGTERM))  # so that namespaces and files go
    require(given.way_names)
    counts, details = given.counts, dict[str, object]()
    link = (given.megabits or DEFAULT_MEGABITS) * 125_000
    if given.real_disk:
        speed = measure_disk(given.folder)
        details["disk"] = dataclasses.asdict(speed)
        link = given.megabits * 125_000 if given.megabits else link_rate_for(speed, max(counts))
        print(f"{speed}; links of {link / 125_000:g} Mbit/s", file=sys.stderr)
        if not drop_caches():
            print("caches cannot be dropped here: what was just written is read from memory", file=sys.stderr)
    uplink = given.internet_megabits * 125_000
    size = round(given.gigabytes * 1e9 or given.megabytes * 1e6 or given.seconds * min(link, uplink or link))
    require_room(given.folder, size * (max(counts) + 2))
    with tempfile.TemporaryDirectory(prefix="fleet-relay-", dir=given.folder) as text:
        load = prepare(Path(text), size, link, uplink, given.piece_bytes)
        load = dataclasses.replace(load, paced=given.paced, real_disk=given.real_disk)
        outcomes = []
        for count in counts:
            for way in given.way_names:
                outcome = WAYS[way](load, count)
                print(f"{way} N={count}: {outcome.ratio:.3f} ({outcome.seconds:.1f} s)", file=sys.stderr, flush=True)
                show_parts(load, outcome)
                outcomes.append(outcome)
    show(load, outcomes, given.way_names, counts, details)


if __name__ == "__main__":
    main()
