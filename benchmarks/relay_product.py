"""The product's relay as one of the ways: plain TCP or mutual TLS, ordered by the product's own conductor."""

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.relay_control import LabController
from benchmarks.relay_cpu import CpuSeconds
from benchmarks.relay_disk import drop_caches
from benchmarks.relay_hub import Hub
from benchmarks.relay_lab import RelayLab, RelayProcess, put_into_cache, relay_lab
from benchmarks.relay_load import Load, Outcome, manifest_of, names_of, scratch, shaped
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.distributing.model import Member

LIMIT_FACTOR = 40.0


def measure_relay(load: Load, hosts: int, tls: bool) -> Outcome:
    names = names_of(hosts)
    manifest = manifest_of(load, hosts)
    with contextlib.ExitStack() as stack:
        folder, network = stack.enter_context(scratch(load)), stack.enter_context(shaped(load, hosts))
        hub = Hub(load, network) if load.uplink else None
        if hub:
            stack.callback(hub.stop)
        source = HubSource(endpoint=hub.url) if hub else FolderSource(path=str(load.file.parent))
        members = [Member(name=name, link_bytes_per_second=load.link) for name in names]
        control = LabController(members, names[0], source)
        lab = stack.enter_context(relay_lab(folder, manifest, names, network, tls, control.hear, kind=RelayProcess))
        control.lab = lab
        if not hub:
            put_into_cache(lab.hf_home(names[0]), manifest, load.file.parent)
            VerifiedNotes(Path(lab.spec(names[0]).machine_dir)).write(lab.blob(names[0]), brought=True)
        lab.start_all(round(load.link) if load.paced else 0)
        before = cpu_of(lab)
        started = control.begin()
        ended = control.wait_until_complete(names, load.ideal_seconds * LIMIT_FACTOR)
        cpu = cpu_of(lab) - before
        uplink = hub.uplink() if hub else None
        check(load, lab)
    if len(control.changes) > 1:
        print(f"topology changed: {control.changes[1:]}", file=sys.stderr)
    seconds = ended - started
    first = min(control.completed_at[name] for name in names[1:]) - started
    way = "tls" if tls else "plain"
    return Outcome(way, hosts, seconds / load.ideal_seconds, seconds, cpu, uplink, first, manifest.piece_bytes)


def cpu_of(lab: RelayLab[RelayProcess]) -> CpuSeconds:
    return sum((relay.cpu() for relay in lab.relays.values()), CpuSeconds())


def check(load: Load, lab: RelayLab[RelayProcess]) -> None:
    """Every file on every host is hashed again. Ends the benchmark where one is wrong."""
    if load.real_disk:
        drop_caches()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lab.wrong_files, lab.names))
    wrong = [f"{name}: {what}" for name, files in zip(lab.names, found, strict=True) for what in files]
    if wrong:
        raise SystemExit("\n".join(wrong))
