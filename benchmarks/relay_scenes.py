"""Rollouts over shaped links that something happens to: what relay_faults.py plays and measures."""

import contextlib
import math
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.relay_control import LabController
from benchmarks.relay_hub import Hub
from benchmarks.relay_lab import (
    RelayLab,
    RelayProcess,
    ShapedNetwork,
    make_content,
    make_manifest,
    put_into_cache,
    relay_lab,
)
from benchmarks.relay_load import Load, manifest_of, names_of, scratch, shaped
from fleet_agent.artifacts.cache import HubCache
from fleet_agent.relay.control import CorruptPiece, Progress
from fleet_agent.relay.manifest import Manifest
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.distributing.model import Member

LIMIT_FACTOR = 20.0
AGENT_RESTART_SECONDS = 1.0
LIES_FROM = 0.4  # of its own copy that a host has sent when it begins to lie
SPARE_SHARE = 1.2  # size of the small disk, over the model's


@dataclass
class Scene:
    """One rollout that something happens to. The head is the first of the names."""

    load: Load
    folder: Path
    network: ShapedNetwork
    lab: RelayLab[RelayProcess]
    control: LabController
    hub: Hub | None
    struck: set[str] = field(default_factory=set)  # hosts whose own time does not count
    struck_at: float = 0.0
    notes: list[str] = field(default_factory=list)
    had_bytes: dict[str, int] = field(default_factory=dict)  # when its present process began

    @property
    def names(self) -> tuple[str, ...]:
        return self.lab.names

    @property
    def limit(self) -> float:
        return self.load.ideal_seconds * LIMIT_FACTOR

    # -- what the faults do -----------------------------------------------------------------------------------

    def wait_for_share(self, name: str, share: float) -> None:
        """Until a host has verified that share of the file."""
        wanted = share * self.load.size_bytes
        self.lab.relays[name].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes >= wanted, self.limit)

    def strike(self, *names: str) -> None:
        self.struck |= set(names)
        self.struck_at = self.struck_at or time.monotonic()

    def start(self, name: str) -> RelayProcess:
        self.had_bytes[name] = self.on_disk(name)
        return self.lab.start(name)

    def kill(self, name: str, back: bool = False) -> None:
        """The process; its agent tells of it, and starts it again where it is to come `back`."""
        self.strike(name)
        self.lab.relays[name].kill()
        self.control.ended(name)
        if back:
            time.sleep(AGENT_RESTART_SECONDS)
            self.start(name)

    def cut_off(self, name: str) -> None:
        """Control runs over the very link that is cut."""
        self.strike(name)
        self.control.cut.add(name)
        self.network.cut(name)

    def mend(self, name: str) -> None:
        self.network.mend(name)
        self.control.cut.discard(name)
        self.control.repeat(name)

    # -- what came of it --------------------------------------------------------------------------------------

    def on_disk(self, name: str) -> int:
        cache, manifest = HubCache(self.lab.hf_home(name)), self.lab.manifest
        return sum(cache.present_bytes(manifest.repository, file) for file in manifest.files)

    def extra_hub_bytes(self) -> int | None:
        """What left the hub beyond the model's size; None where it has no part."""
        return None if self.hub is None else self.hub.uplink().interface.payload_bytes - self.load.size_bytes

    def refetched_pieces(self) -> dict[str, int]:
        """Of each host that is done, by its present process: pieces that came in beyond what was lacking."""
        found = {}
        for name, fetched in self.control.fetched_bytes.items():
            beyond = fetched - (self.load.size_bytes - self.had_bytes[name])
            found[name] = math.ceil(max(0, beyond) / self.lab.manifest.piece_bytes)
        return found


# -- the faults -------------------------------------------------------------------------------------------------


def nothing(scene: Scene) -> None:
    scene.struck_at = time.monotonic()


def receiver_killed_and_back(scene: Scene) -> None:
    victim = scene.names[3]
    scene.wait_for_share(victim, 0.5)
    scene.kill(victim, back=True)


def head_killed_and_back(scene: Scene) -> None:
    scene.wait_for_share(scene.names[1], 0.5)
    scene.kill(scene.names[0], back=True)


def seed_dead_after_one_copy(scene: Scene) -> None:
    scene.control.wait_for(lambda state: scene.names[1] in state.complete, scene.limit)
    scene.kill(scene.names[0])


def seed_dead_half_way(scene: Scene) -> None:
    scene.wait_for_share(scene.names[1], 0.5)
    scene.kill(scene.names[0])


def link_cut_silently(scene: Scene) -> None:
    victim = scene.names[2]
    scene.wait_for_share(victim, 0.4)
    scene.cut_off(victim)
    scene.control.wait_for(lambda state: victim in state.faults, scene.limit)
    scene.control.wait_until_complete([name for name in scene.names if name != victim], scene.limit)
    scene.mend(victim)


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
    """scene.names[2] lies (see start_relays)."""
    scene.wait_for_share(scene.names[3], LIES_FROM - 0.02)
    scene.strike(scene.names[2])
    scene.lab.relays[scene.names[3]].wait_for(lambda event: isinstance(event, CorruptPiece), scene.limit)


def full_disk(scene: Scene) -> None:
    """scene.names[2] has a small disk (see start_relays), which somebody else fills and empties again."""
    victim = scene.names[2]
    scene.wait_for_share(victim, 0.3)
    scene.strike(victim)
    with fill(scene.lab.hf_home(victim)):
        scene.control.wait_for(lambda state: victim in state.gone, scene.limit)
        failure = scene.lab.relays[victim].failure()
        scene.notes.append(failure.message if failure else "it told nothing")
    scene.lab.relays[victim].end()
    scene.start(victim)


def controller_killed(scene: Scene) -> None:
    """Away for a fifth of the time; a receiver is killed meanwhile, and comes back."""
    scene.wait_for_share(scene.names[2], 0.3)
    scene.control.away()
    scene.kill(scene.names[4], back=True)
    time.sleep(scene.load.ideal_seconds / 5)
    scene.control.restart()


def two_at_once(scene: Scene) -> None:
    """Another model of half the size through the same hosts at the same time: each then has half of the links."""
    folder = scene.folder / "second"
    manifest = make_manifest(
        make_content(folder, {"second.gguf": scene.load.size_bytes // 2}, seed=2), len(scene.names)
    )
    with second_rollout(scene, manifest, folder) as (lab, control):
        scene.strike()
        control.wait_until_complete(scene.names, scene.limit)
        scene.control.wait_until_complete(scene.names, scene.limit)
        scene.notes += [wrong for name in scene.names for wrong in lab.wrong_files(name)]
        scene.notes.append(f"the other one's demotions: {sorted(control.conductor.state.faults) or 'none'}")


def same_twice_at_once(scene: Scene) -> None:
    """The same model through the same hosts: the second waits for the first's locks, and then has nothing to do."""
    with second_rollout(scene, scene.lab.manifest, scene.load.file.parent) as (_, control):
        scene.strike()
        scene.control.wait_until_complete(scene.names, scene.limit)
        for name in scene.names:
            scene.lab.relays[name].stop()  # it holds the locks as long as it serves
        control.wait_until_complete(scene.names, scene.limit)
        fetched = sum(tally.fetched_bytes for tally in control.tallies.values())
        scene.notes.append(f"the second one fetched {fetched} bytes")


def loaded_machine(scene: Scene) -> None:
    """Three busy processes for each core, until all are done."""
    scene.wait_for_share(scene.names[2], 0.2)
    scene.strike()
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        scene.control.wait_until_complete(scene.names, scene.limit)
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def all_of_it(scene: Scene) -> None:
    """One after the other, while the former still last: only one receiver is left in peace."""
    names = scene.names
    slow, liar, back, cut, full = names[2:7] if len(names) >= 7 else (*names[2:6], "")
    scene.wait_for_share(names[1], 0.15)
    scene.network.shape(slow, scene.load.link / 10)
    scene.strike(slow, liar)
    scene.wait_for_share(names[1], 0.3)
    scene.kill(names[0])
    scene.control.restart()
    with contextlib.ExitStack() as stack:
        if full:
            scene.strike(full)
            stack.enter_context(fill(scene.lab.hf_home(full)))
            scene.control.wait_for(lambda state: full in state.gone | state.complete, scene.limit)
        scene.kill(back, back=True)
        scene.cut_off(cut)
        scene.control.away()
        time.sleep(4.0)
        scene.control.restart()
        scene.mend(cut)
    if full and full in scene.control.conductor.state.gone:
        scene.lab.relays[full].end()
        scene.start(full)
    scene.network.shape(slow, scene.load.link)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "receiver-killed": receiver_killed_and_back,
    "head-killed": head_killed_and_back,
    "seed-dead-after-copy": seed_dead_after_one_copy,
    "seed-dead-half-way": seed_dead_half_way,
    "link-cut": link_cut_silently,
    "slow-middle": slow_in_the_middle,
    "slow-first": slow_first,
    "bad-bytes": bad_bytes,
    "full-disk": full_disk,
    "controller-killed": controller_killed,
    "two-at-once": two_at_once,
    "same-twice": same_twice_at_once,
    "loaded-machine": loaded_machine,
    "all-of-it": all_of_it,
}
# Where the head fetches while the others do; in the rest it has the model from the start.
FROM_THE_HUB = frozenset({"nothing-from-hub", "head-killed", "seed-dead-half-way", "controller-killed", "all-of-it"})
LIARS = {"bad-bytes": 2, "all-of-it": 3}
SMALL_DISKS = {"full-disk": 2, "all-of-it": 6}


class Liar(RelayProcess):
    """A relay that lies (relay_liar.py)."""


def burn() -> None:
    while True:
        pass


@contextlib.contextmanager
def fill(folder: Path) -> Iterator[None]:
    """A disk without a free byte, for the block."""
    hog = folder / "hog"
    try:
        with contextlib.suppress(OSError), hog.open("wb", buffering=0) as stream:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while stream.write(bytes(size)):
                        pass
        yield
    finally:
        hog.unlink(missing_ok=True)


# -- a rollout --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rollout(load: Load, fault: str, hosts: int, tls: bool) -> Iterator[tuple[Scene, float]]:
    """A rollout that has just begun, and when (monotonic seconds)."""
    names = names_of(hosts)
    manifest = manifest_of(load, hosts)
    members = [Member(name=name, link_bytes_per_second=load.link) for name in names]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch(load))
        network = stack.enter_context(shaped(load, hosts))
        hub = None
        source: HubSource | FolderSource = FolderSource(path=str(load.file.parent))
        if fault in FROM_THE_HUB:
            hub = Hub(load, network, rate=load.link)
            stack.callback(hub.stop)
            source = HubSource(endpoint=hub.url)
        fallback = source if isinstance(source, HubSource) else None
        control = LabController(members, names[0], source, fallback)
        lab = stack.enter_context(relay_lab(folder, manifest, names, network, tls, control.hear, kind=RelayProcess))
        control.lab = lab
        if hub is None:
            put_into_cache(lab.hf_home(names[0]), manifest, load.file.parent)
        scene = Scene(load, folder, network, lab, control, hub)
        start_relays(scene, fault, stack)
        yield scene, control.begin()


def start_relays(scene: Scene, fault: str, stack: contextlib.ExitStack) -> None:
    lab, size = scene.lab, scene.load.size_bytes
    Liar.module = ("benchmarks.relay_liar", str(round(size * LIES_FROM)))
    for number, name in enumerate(lab.names):
        if SMALL_DISKS.get(fault) == number:
            home = lab.hf_home(name)
            home.mkdir(parents=True)
            options = f"size={round(size * SPARE_SHARE)}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(home)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(home)], check=False)
        usual, lab.kind = lab.kind, Liar if LIARS.get(fault) == number else lab.kind
        scene.start(name)
        lab.kind = usual
    for relay in lab.relays.values():
        relay.port()


@contextlib.contextmanager
def second_rollout(
    scene: Scene, manifest: Manifest, source: Path
) -> Iterator[tuple[RelayLab[RelayProcess], LabController]]:
    """Another one over the same hosts and their caches, which has just begun."""
    members = [Member(name=name, link_bytes_per_second=scene.load.link) for name in scene.names]
    control = LabController(members, scene.names[0], FolderSource(path=str(source)))
    with relay_lab(
        scene.folder, manifest, scene.names, scene.network, scene.lab.encrypted, control.hear, kind=RelayProcess
    ) as lab:
        control.lab = lab
        lab.start_all()
        control.begin()
        yield lab, control
