"""What a fault costs the other hosts of a rollout, over shaped links: each fault by itself, and all of a kind together.

    python -m benchmarks.relay_faults [--faults all] [--hosts 6] [--megabits 100] [--seconds 30] [--plain]

`others` is the time until every host but the struck one is done, over that of a rollout without a fault in the same
run; `repaired` is how long after the fault the topology was changed. Afterwards every file in place on every host is
hashed again: a wrong one ends the benchmark. Control runs over the very links that are cut, so who is cut off is not
heard and hears nothing. Needs root, `ip` and `tc`.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from benchmarks.relay import Hub, Load, manifest_of, names_of, prepare, scratch, shaped
from benchmarks.relay_control import LabController
from benchmarks.relay_lab import (
    RelayLab,
    RelayProcess,
    ShapedNetwork,
    make_content,
    make_manifest,
    put_into_cache,
    relay_lab,
    wait_until,
)
from fleet_agent.relay.control import CorruptPiece, Progress
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.distributing.model import Member

LIMIT_FACTOR = 12.0


@dataclass
class Scene:
    """One rollout that something happens to."""

    load: Load
    folder: Path
    network: ShapedNetwork
    lab: RelayLab[RelayProcess]
    control: LabController
    hub: Hub | None
    struck: set[str] = field(default_factory=set)  # hosts whose own time does not count
    struck_at: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return self.lab.names

    def wait_for_share(self, name: str, share: float) -> None:
        """Until a host has verified that share of the file."""
        wanted = share * self.load.size_bytes
        self.lab.relays[name].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes >= wanted, self.limit)

    @property
    def limit(self) -> float:
        return self.load.ideal_seconds * LIMIT_FACTOR

    def strike(self, *names: str) -> None:
        self.struck |= set(names)
        self.struck_at = self.struck_at or time.monotonic()

    def kill(self, name: str) -> None:
        self.strike(name)
        self.lab.relays[name].kill()
        self.control.ended(name)


# -- the faults -------------------------------------------------------------------------------------------------


def nothing(scene: Scene) -> None:
    scene.struck_at = time.monotonic()


def receiver_killed_and_back(scene: Scene) -> None:
    victim = scene.names[3]
    scene.wait_for_share(victim, 0.5)
    scene.kill(victim)
    kept = scene.lab.blob(victim).with_name(scene.lab.blob(victim).name + ".incomplete").stat().st_size
    time.sleep(1.0)
    relay = scene.lab.start(victim)
    relay.wait_until_complete(scene.limit)
    assert relay.progress is not None
    again = relay.progress.received_bytes - (scene.load.size_bytes - kept)
    scene.notes.append(f"it refetched {max(0, again)} bytes (a piece is {scene.lab.manifest.piece_bytes})")


def seed_dead_after_one_copy(scene: Scene) -> None:
    scene.control.wait_for(lambda state: scene.names[1] in state.complete, scene.limit)
    scene.kill(scene.names[0])


def seed_dead_half_way(scene: Scene) -> None:
    scene.wait_for_share(scene.names[1], 0.5)
    scene.kill(scene.names[0])


def link_cut_silently(scene: Scene) -> None:
    victim = scene.names[2]
    scene.wait_for_share(victim, 0.4)
    scene.strike(victim)
    scene.control.cut.add(victim)
    scene.network.cut(victim)
    scene.control.wait_for(lambda state: victim in state.faults, scene.limit)
    others = [name for name in scene.names if name != victim]
    scene.control.wait_until_complete(others, scene.limit)
    scene.network.mend(victim)
    scene.control.cut.discard(victim)
    scene.control.repeat(victim)


def slow_in_the_middle(scene: Scene) -> None:
    victim = scene.names[3]
    scene.wait_for_share(victim, 0.2)
    scene.strike(victim)
    scene.network.shape(victim, scene.load.link / 10)
    scene.control.wait_for(lambda state: victim in state.faults, scene.limit)


def slow_first(scene: Scene) -> None:
    victim = scene.names[1]
    scene.network.shape(victim, scene.load.link / 10)
    scene.strike(victim)
    scene.control.wait_for(lambda state: victim in state.faults, scene.limit)


def bad_bytes(scene: Scene) -> None:
    """scene.names[2] lies from 40 % on (see start_relays)."""
    next_one = scene.lab.relays[scene.names[3]]
    next_one.wait_for(lambda event: isinstance(event, CorruptPiece), scene.limit)
    scene.strike(scene.names[2])


def full_disk(scene: Scene) -> None:
    """scene.names[2] has a file system of its own (see start_relays) that somebody else fills."""
    victim = scene.names[2]
    scene.wait_for_share(victim, 0.3)
    scene.strike(victim)
    hog = scene.lab.hf_home(victim) / "hog"
    with contextlib.suppress(OSError), hog.open("wb") as stream:
        while True:
            stream.write(bytes(1 << 20))
    scene.control.wait_for(lambda state: victim in state.gone, scene.limit)
    failure = scene.lab.relays[victim].failure()
    scene.notes.append(failure.message if failure else "it told nothing")
    hog.unlink()
    scene.lab.start(victim)


def controller_killed(scene: Scene) -> None:
    """Away for a fifth of the time, and a host dies meanwhile."""
    scene.wait_for_share(scene.names[2], 0.3)
    scene.strike()
    scene.control.deaf = True
    time.sleep(scene.load.ideal_seconds / 5)
    scene.control.deaf = False
    scene.control.restart()


def two_at_once(scene: Scene) -> None:
    """Another model through the same hosts, at the same time: each then has half of the links."""
    folder = scene.folder / "second"
    files = make_content(folder, {"second.gguf": scene.load.size_bytes // 2}, seed=2)
    manifest = make_manifest(files, len(scene.names))
    members = [Member(name=name, link_bytes_per_second=scene.load.link) for name in scene.names]
    control = LabController(members, scene.names[0], FolderSource(path=str(folder)))
    with relay_lab(
        scene.folder, manifest, scene.names, scene.network, scene.lab.encrypted, control.hear, kind=RelayProcess
    ) as lab:
        control.lab = lab
        lab.start_all()
        scene.strike()
        control.begin()
        control.wait_until_complete(scene.names, scene.limit)
        scene.control.wait_until_complete(scene.names, scene.limit)
        check(lab, scene.names)
        scene.notes.append(f"the other one's changes: {[why for _, why in control.changes[1:]]}")


def all_of_it(scene: Scene) -> None:
    """The head dies, a host is slow, another is killed and comes back, a third is cut off, the controller restarts."""
    names = scene.names
    scene.wait_for_share(names[1], 0.2)
    scene.network.shape(names[4], scene.load.link / 10)
    scene.strike(names[4])
    scene.wait_for_share(names[1], 0.35)
    scene.kill(names[0])
    scene.control.restart()
    scene.wait_for_share(names[2], 0.5)
    scene.kill(names[3])
    time.sleep(0.5)
    scene.lab.start(names[3])
    scene.strike(names[5])
    scene.control.cut.add(names[5])
    scene.network.cut(names[5])
    time.sleep(4.0)
    scene.network.mend(names[5])
    scene.control.cut.discard(names[5])
    scene.control.repeat(names[5])
    scene.network.shape(names[4], scene.load.link)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "receiver-killed": receiver_killed_and_back,
    "seed-dead-after-copy": seed_dead_after_one_copy,
    "seed-dead-half-way": seed_dead_half_way,
    "link-cut": link_cut_silently,
    "slow-middle": slow_in_the_middle,
    "slow-first": slow_first,
    "bad-bytes": bad_bytes,
    "full-disk": full_disk,
    "controller-killed": controller_killed,
    "two-at-once": two_at_once,
    "all-of-it": all_of_it,
}
FROM_THE_HUB = frozenset({"seed-dead-half-way", "all-of-it"})


class Liar(RelayProcess):
    """A relay that lies (relay_liar.py)."""


# -- a rollout --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rollout(load: Load, fault: str, hosts: int, tls: bool) -> Iterator[tuple[Scene, float]]:
    """A rollout that has just begun, and when."""
    names = names_of(hosts)
    manifest = manifest_of(load, hosts)
    members = [Member(name=name, link_bytes_per_second=load.link) for name in names]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch(load))
        network = stack.enter_context(shaped(load, hosts))
        hub = None
        source: HubSource | FolderSource = FolderSource(path=str(load.file.parent))
        if fault in FROM_THE_HUB:
            hub = Hub(load_with_uplink(load), network)
            stack.callback(hub.stop)
            source = HubSource(endpoint=hub.url)
        fallback = source if isinstance(source, HubSource) else None
        control = LabController(members, names[0], source, fallback)
        lab = stack.enter_context(relay_lab(folder, manifest, names, network, tls, control.hear, kind=RelayProcess))
        control.lab = lab
        if hub is None:
            put_into_cache(lab.hf_home(names[0]), manifest, load.file.parent)
        start_relays(load, lab, fault, stack)
        yield Scene(load, folder, network, lab, control, hub), control.begin()


def load_with_uplink(load: Load) -> Load:
    return Load(load.folder, load.source, load.size_bytes, load.link, load.link, load.piece_bytes)


def start_relays(load: Load, lab: RelayLab[RelayProcess], fault: str, stack: contextlib.ExitStack) -> None:
    for name in lab.names:
        if fault == "bad-bytes" and name == lab.names[2]:
            Liar.module = ("benchmarks.relay_liar", str(round(load.size_bytes * 0.4)))
            lab.kind, usual = Liar, lab.kind
            lab.start(name)
            lab.kind = usual
            continue
        if fault == "full-disk" and name == lab.names[2]:
            home = lab.hf_home(name)
            home.mkdir(parents=True)
            size = round(load.size_bytes * 1.2)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(home)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(home)], check=False)
        lab.start(name)
    for relay in lab.relays.values():
        relay.port()


def check(lab: RelayLab[Any], names: tuple[str, ...]) -> None:
    wrong = [f"{name}: {what}" for name in names for what in lab.wrong_files(name)]
    if wrong:
        raise SystemExit("\n".join(wrong))


def play(load: Load, fault: str, hosts: int, tls: bool) -> dict[str, Any]:
    """One rollout with one fault; what came of it."""
    with rollout(load, fault, hosts, tls) as (scene, started):
        failed: list[BaseException] = []

        def act() -> None:
            try:
                FAULTS.get(fault, nothing)(scene)
            except BaseException as error:
                failed.append(error)

        actor = threading.Thread(target=act, daemon=True)
        actor.start()
        wait_until(lambda: bool(scene.struck_at) or bool(failed), scene.limit, "the fault happens")
        others = [name for name in scene.names if name not in scene.struck]
        others_done = scene.control.wait_until_complete(others, scene.limit) if not failed else started
        actor.join(scene.limit)
        if failed:
            print(scene.control.describe(), file=sys.stderr)
            raise SystemExit(f"{fault}: {failed[0]!r}")
        left = [name for name in scene.names if name not in scene.control.conductor.state.gone]
        scene.control.wait_until_complete(left, scene.limit)
        check(scene.lab, tuple(left))
        repaired = [at - scene.struck_at for at, _ in scene.control.changes[1:] if at >= scene.struck_at]
        faults = {name: fault.value for name, fault in scene.control.conductor.state.faults.items()}
        return {
            "fault": fault,
            "others_seconds": others_done - started,
            "all_seconds": time.monotonic() - started,
            "repaired_seconds": repaired[0] if repaired else None,
            "demoted": faults,
            "falsely_demoted": [name for name in faults if name not in scene.struck],
            "changes": [why for _, why in scene.control.changes[1:]],
            "notes": scene.notes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="all", help=", ".join(FAULTS))
    parser.add_argument("--hosts", type=int, default=6)
    parser.add_argument("--megabits", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    faults = list(FAULTS) if given.faults == "all" else given.faults.split(",")
    link = given.megabits * 125_000
    with tempfile.TemporaryDirectory(prefix="fleet-relay-", dir=given.folder) as text:
        load = prepare(Path(text), round(given.seconds * link), link, 0.0, 0)
        outcomes = []
        for fault in ["none", *faults]:
            outcomes.append(play(load, fault, given.hosts, not given.plain))
            print(outcomes[-1], file=sys.stderr)
    base = outcomes[0]["others_seconds"]
    rows = [
        [
            outcome["fault"],
            f"{outcome['others_seconds'] / base:.3f}",
            "-" if outcome["repaired_seconds"] is None else f"{outcome['repaired_seconds']:.1f} s",
            ", ".join(f"{name}: {why}" for name, why in outcome["demoted"].items()) or "-",
            "; ".join(outcome["notes"]) or "-",
        ]
        for outcome in outcomes
    ]
    head = ["fault", "others, over no fault", "repaired after", "demoted", "notes"]
    report(f"Faults of a rollout, N={given.hosts}", head, rows, {"outcomes": outcomes, "link_bytes_per_second": link})


if __name__ == "__main__":
    main()
