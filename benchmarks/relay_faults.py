"""What a fault costs the other hosts of a rollout, over shaped links: each fault by itself, and all of them together.

    python -m benchmarks.relay_faults [--faults all] [--hosts 6] [--megabits 100] [--seconds 30] [--plain]

`others`: time until every host but the struck ones is done, over that of a rollout without a fault in the same run
(from a host that has the model, or from a hub); `+s`: the same as a difference; `repaired`: how long after the fault
the topology was changed; `hub`: bytes that left the hub beyond the model's size, headers of packets aside;
`refetched`: pieces that came in twice, of the host with most; `false`: demotions of hosts that nothing happened to.
Afterwards every file in place on every host is hashed again: a wrong one ends the benchmark. Needs root, `ip` and `tc`.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from benchmarks.relay_lab import RelayLab
from benchmarks.relay_load import Load, prepare
from benchmarks.relay_scenes import FAULTS, FROM_THE_HUB, Scene, nothing, rollout

BASELINES = {False: "nothing", True: "nothing-from-hub"}  # whether there is a hub


def check(lab: RelayLab[Any], complete: tuple[str, ...]) -> None:
    """Ends the benchmark where a file in place is wrong anywhere, or one is missing on a host that is done."""
    found = [(name, what) for name in lab.names for what in lab.wrong_files(name)]
    wrong = [f"{name}: {what}" for name, what in found if name in complete or not what.endswith("is missing")]
    if wrong:
        raise SystemExit("\n".join(wrong))


def strike(scene: Scene, fault: str) -> float:
    """Plays the fault to its end; when all hosts that it does not strike were done (monotonic seconds)."""
    try:
        FAULTS.get(fault, nothing)(scene)
        others = [name for name in scene.names if name not in scene.struck]
        scene.control.wait_until_complete(others, scene.limit)
    except (TimeoutError, RuntimeError, OSError) as error:
        raise SystemExit(f"{fault}: {error!r}\n{scene.control.describe()}") from error
    return max(scene.control.completed_at[name] for name in others)


def play(load: Load, fault: str, hosts: int, tls: bool) -> dict[str, Any]:
    """One rollout with one fault; what came of it."""
    with rollout(load, fault, hosts, tls) as (scene, started):
        others_done = strike(scene, fault)
        left = tuple(name for name in scene.names if scene.lab.relays[name].process.poll() is None)
        scene.control.wait_until_complete(left, scene.limit)
        all_done = time.monotonic()
        state = scene.control.conductor.state
        check(scene.lab, tuple(state.complete))
        changes = scene.control.changes[1:]
        repaired = [at - scene.struck_at for at, _ in changes if at >= scene.struck_at]
        demoted = {name: fault.value for name, fault in state.faults.items()}
        return {
            "fault": fault,
            "others_seconds": others_done - started,
            "all_seconds": all_done - started,
            "repaired_seconds": repaired[0] if repaired else None,
            "extra_hub_bytes": scene.extra_hub_bytes(),
            "refetched_pieces": scene.refetched_pieces(),
            "piece_bytes": scene.lab.manifest.piece_bytes,
            "demoted": demoted,
            "falsely_demoted": [name for name in demoted if name not in scene.struck],
            "changes": [why for _, why in changes],
            "notes": scene.notes,
        }


def row(outcome: dict[str, Any], base_seconds: float, size_bytes: int) -> list[str]:
    seconds, extra, refetched = outcome["others_seconds"], outcome["extra_hub_bytes"], outcome["refetched_pieces"]
    most = max(refetched, key=refetched.__getitem__, default="")
    return [
        outcome["fault"],
        f"{seconds / base_seconds:.3f}",
        f"{seconds - base_seconds:+.1f}",
        "-" if outcome["repaired_seconds"] is None else f"{outcome['repaired_seconds']:.1f} s",
        "-" if extra is None else f"{extra} ({1 + extra / size_bytes:.3f} x)",
        f"{refetched[most]} on {most}" if most and refetched[most] else "0",
        ", ".join(f"{name}: {why}" for name, why in outcome["demoted"].items()) or "-",
        ", ".join(outcome["falsely_demoted"]) or "-",
        "; ".join(outcome["notes"]) or "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="all", help=", ".join(FAULTS))
    parser.add_argument("--hosts", type=int, default=6, help="receivers; 6 at least for all-of-it with a full disk")
    parser.add_argument("--megabits", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    faults = list(FAULTS) if given.faults == "all" else given.faults.split(",")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if given.hosts < 5:
        parser.error("the faults need five receivers at least")
    link = given.megabits * 125_000
    baselines = sorted({BASELINES[fault in FROM_THE_HUB] for fault in faults})
    with tempfile.TemporaryDirectory(prefix="fleet-relay-", dir=given.folder) as text:
        load = prepare(Path(text), round(given.seconds * link), link, 0.0, 0)
        outcomes = []
        for fault in [*baselines, *faults]:
            outcomes.append(play(load, fault, given.hosts, not given.plain))
            print(outcomes[-1], file=sys.stderr, flush=True)
    base = {outcome["fault"]: outcome["others_seconds"] for outcome in outcomes}
    rows = [row(outcome, base[BASELINES[outcome["fault"] in FROM_THE_HUB]], load.size_bytes) for outcome in outcomes]
    head = ["fault", "others", "+s", "repaired", "hub", "refetched", "demoted", "false", "notes"]
    report(f"Faults of a rollout, N={given.hosts}", head, rows, {"outcomes": outcomes, "link_bytes_per_second": link})


if __name__ == "__main__":
    main()
