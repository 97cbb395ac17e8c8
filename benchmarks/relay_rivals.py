"""What else brings a file to N hosts, over the same links: a bare chain, rsync, downloads from the hub, libtorrent.

Where the internet is in it, rsync and libtorrent have their one host fetch the file from the hub first: neither can
pass on what is still arriving. Where a real disk is asked for, each host is done when its disk has all.
"""

import contextlib
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.relay_hub import HUB, Hub
from benchmarks.relay_load import MODEL, Load, Outcome, check_copies, names_of, scratch, shaped
from benchmarks.relay_network import ShapedNetwork
from benchmarks.relay_race import race, racers, server, shell

RSYNC_PORT = 8730

CHAIN = """
import os, socket, sys, time
role, port, upstream, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
serves, rate, synced = sys.argv[5] == "serves", float(sys.argv[6]), sys.argv[7] == "synced"
server = socket.create_server((role, port))
print("ready", flush=True)
sys.stdin.readline()
if upstream:
    source = socket.create_connection((upstream, port))
    read = lambda: source.recv(1 << 18)
else:
    file = open(path, "rb")
    read = lambda: file.read(1 << 18)
sink = server.accept()[0] if serves else None
out = open(path, "wb") if upstream else None
due = time.monotonic()
while block := read():
    if rate and not upstream:
        due += len(block) / rate
        time.sleep(max(0.0, due - time.monotonic()))
    if sink: sink.sendall(block)
    if out: out.write(block)
if out:
    out.flush()
    if synced: os.fsync(out.fileno())
print("done", flush=True)
"""

DOWNLOAD = """
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[2]) as reply, open(sys.argv[1], "wb") as out:
    shutil.copyfileobj(reply, out, 1 << 20)
"""


def require(ways: Sequence[str]) -> None:
    """Ends the benchmark where something is missing, before anything is made."""
    wanted = {"ip": "iproute2", "tc": "iproute2"}
    if "rsync" in ways:
        wanted["rsync"] = "rsync"
    missing = sorted({package for tool, package in wanted.items() if not shutil.which(tool)})
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}; apt-get install them, or choose other --ways")
    if "libtorrent" in ways and importlib.util.find_spec("libtorrent") is None:
        raise SystemExit(
            "missing here: the Python package libtorrent, which only this benchmark uses;"
            f" uv pip install -p {sys.executable} libtorrent, or choose other --ways"
        )


def measure_bare(load: Load, hosts: int) -> Outcome:
    """Each host passes on what comes in, unchecked: the limit of this machine and of TCP. The hub is its first link."""
    names = [*([HUB] if load.uplink else []), *names_of(hosts)]
    with scratch(load) as folder, shaped(load, hosts) as network:
        cables = [network.connect(name) for name in names]
        if load.uplink:
            network.shape(HUB, load.uplink)
        rate, synced = str(load.link if load.paced else 0.0), "synced" if load.real_disk else "as-it-comes"
        commands = []
        for number, cable in enumerate(cables):
            upstream = cables[number - 1].address if number else ""
            path = str(folder / names[number]) if number else str(load.file)
            serves = "ends" if cable is cables[-1] else "serves"
            chain = [sys.executable, "-c", CHAIN, cable.address, "9000", upstream, path, serves, rate, synced]
            commands.append([*cable.prefix, *chain])
        with racers(commands) as processes:
            return race("bare", load, processes, hosts)


def measure_rsync(load: Load, hosts: int) -> Outcome:
    """From the one host that has it to each: an rsync daemon there, one rsync on each host, all at once."""
    names = names_of(hosts)
    with contextlib.ExitStack() as stack:
        folder, network = stack.enter_context(scratch(load)), stack.enter_context(shaped(load, hosts))
        cables = [network.connect(name) for name in names]
        path, hub, fetch = stack.enter_context(one_host_that_has_it(load, network, folder))
        address, config = cables[0].address, folder / "rsyncd.conf"
        config.write_text(
            f"port = {RSYNC_PORT}\naddress = {address}\nuse chroot = no\nuid = root\ngid = root\n"
            f"log file = {folder}/rsyncd.log\n[model]\npath = {path.parent}\n"
        )
        command = ["rsync", "--daemon", "--no-detach", f"--config={config}"]
        daemon = stack.enter_context(server(cables[0].prefix, command, address, RSYNC_PORT))
        copy = [
            "rsync",
            "-W",
            *(["--fsync"] if load.real_disk else []),
            f"rsync://{address}:{RSYNC_PORT}/model/{MODEL}",
        ]
        commands = [
            shell(cable.prefix, shlex.join([*copy, str(folder / name)]))
            for name, cable in zip(names[1:], cables[1:], strict=True)
        ]
        with racers(commands) as processes:
            outcome = race("rsync", load, processes, hosts, hub=hub, first=fetch, servers=[daemon])
        check_copies(load, [folder / name for name in names[1:]])
    return outcome


def measure_http(load: Load, hosts: int) -> Outcome:
    """N downloads from the hub: from the internet where there is an uplink, else from a mirror in the lab."""
    names = names_of(hosts)[1:]
    with scratch(load) as folder, shaped(load, hosts) as network:
        hub = Hub(load, network, load.uplink or load.link)
        try:
            commands = [
                shell(network.connect(name).prefix, download(hub, folder / name, load.real_disk)) for name in names
            ]
            with racers(commands) as processes:
                outcome = race("http", load, processes, hosts, hub=hub if load.uplink else None)
        finally:
            hub.stop()
        check_copies(load, [folder / name for name in names])
    return outcome


def measure_libtorrent(load: Load, hosts: int) -> Outcome:
    """One seed, which hashes first, and N peers that all know each other from the start, tuned (relay_torrent.py)."""
    names = names_of(hosts)
    with contextlib.ExitStack() as stack:
        folder, network = stack.enter_context(scratch(load)), stack.enter_context(shaped(load, hosts))
        cables = [network.connect(name) for name in names]
        path, hub, fetch = stack.enter_context(one_host_that_has_it(load, network, folder))
        torrent, synced = folder / "model.torrent", "synced" if load.real_disk else "as-it-comes"
        peer = [sys.executable, "-m", "benchmarks.relay_torrent", str(torrent), synced]
        commands = [[*cables[0].prefix, *peer, cables[0].address, str(path), "seed"]]
        for number, cable in enumerate(cables[1:], 1):
            others = [other.address for other in cables[:number]]
            commands.append([*cable.prefix, *peer, cable.address, str(folder / names[number] / MODEL), *others])
        with racers(commands) as processes:
            outcome = race("libtorrent", load, processes, hosts, hub=hub, first=fetch)
        check_copies(load, [folder / name / MODEL for name in names[1:]])
    return outcome


@contextlib.contextmanager
def one_host_that_has_it(
    load: Load, network: ShapedNetwork, folder: Path
) -> Iterator[tuple[Path, Hub | None, Callable[[], None]]]:
    """Where its file is, and what brings it there: nothing, or a download where the internet is in it."""
    if not load.uplink:
        yield load.file, None, lambda: None
        return
    path = folder / "fetched" / MODEL
    path.parent.mkdir()
    hub = Hub(load, network)
    command = [*network.connect(names_of(0)[0]).prefix, "bash", "-c", download(hub, path, load.real_disk)]

    def fetch() -> None:
        subprocess.run(command, check=True)

    try:
        yield path, hub, fetch
    finally:
        hub.stop()


def download(hub: Hub, path: Path, synced: bool) -> str:
    """A line of bash: curl, or Python where that is not here."""
    client = ["curl", "-sSf", "-o"] if shutil.which("curl") else [sys.executable, "-c", DOWNLOAD]
    fetch = shlex.join([*client, str(path), hub.file_url])
    return f"{fetch} && sync {shlex.quote(str(path))}" if synced else fetch
