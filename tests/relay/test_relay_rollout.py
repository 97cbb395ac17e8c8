"""A whole rollout under the controller's own conductor: relays as processes, and what goes wrong in a lab."""

import os
from pathlib import Path

from benchmarks.relay_control import LabController
from benchmarks.relay_lab import REPOSITORY, REVISION, RelayProcess, relay_lab
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.control import Progress
from fleet_agent.relay.manifest import Manifest
from fleet_controller.distributing.messages import HubSource
from fleet_controller.distributing.model import Fault, Member
from support.stand_in_hub import StandInHub

SIZE = 9_000_000
PIECE = 1 << 16
NAMES = ("a", "b", "c", "d")


def test_head_and_receiver_die_the_controller_restarts_and_everyone_gets_it(tmp_path: Path) -> None:
    held = 2 * SIZE // 3 // PIECE * PIECE
    with StandInHub(tmp_path / "hub", hold_after=held) as hub:  # so that nothing ends before all has happened
        file = ArtifactFile(**hub.add(REPOSITORY, "model.gguf", os.urandom(SIZE)))
        manifest = Manifest(REPOSITORY, hub.commit(REPOSITORY), REVISION, (file,), PIECE)
        source = HubSource(endpoint=hub.url)
        control = LabController([Member(name=name) for name in NAMES], "a", source, source)
        with relay_lab(tmp_path / "lab", manifest, NAMES, on_event=control.hear, kind=RelayProcess) as lab:
            control.lab = lab
            lab.start_all()
            control.begin()
            lab.relays["d"].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes > SIZE // 4)
            lab.relays["c"].kill()
            control.ended("c")
            control.wait_for(lambda state: "c" in state.gone, 10)
            lab.start("c")
            control.restart()
            control.wait_for(lambda state: state.faults.get("c") is Fault.RETURNED, 30)
            for name in ("b", "c", "d"):
                lab.relays[name].wait_for(lambda e: isinstance(e, Progress) and e.verified_bytes >= held)
            lab.relays["a"].kill()
            control.ended("a")
            control.wait_until_complete(["b", "c", "d"], 60)
            assert control.conductor.state.topology is not None
            assert control.conductor.state.topology.head != "a"
            assert [lab.wrong_files(name) for name in ("b", "c", "d")] == [[], [], []]
            assert not lab.blob("a").exists()
            # Taken from the hub once: what the new head had, it did not ask for again.
            assert sum(one.sent for one in hub.served) == SIZE
            again = lab.start("a")
            again.wait_until_complete(60)
            assert lab.wrong_files("a") == []
