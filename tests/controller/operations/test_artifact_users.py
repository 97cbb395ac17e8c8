"""Which model files may go: what no host of the same cache uses, and fleet brought, or somebody named."""

from fleet_controller.cli.artifacts_command import removable
from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.operations.artifacts import HostArtifacts, with_users_elsewhere, with_ways_back
from fleet_proto.v1 import artifacts_pb2, controller_pb2

COMMIT = "1" * 40


def test_what_a_host_of_the_same_cache_serves_is_used_here_too() -> None:
    here = HostArtifacts(host="a", artifacts=(Artifact(repository="o/m", commit=COMMIT), Artifact(repository="o/n")))
    there = HostArtifacts(host="b", artifacts=(Artifact(repository="o/m", commit=COMMIT, services=("chat",)),))
    used, free = with_users_elsewhere(here, [there]).artifacts
    assert (used.services, free.services) == (("chat on b",), ())
    assert with_users_elsewhere(here, []) == here


def artifact(repository: str, **more: object) -> artifacts_pb2.Artifact:
    return artifacts_pb2.Artifact(repository=repository, commit=COMMIT, **more)  # type: ignore[arg-type]


def test_what_an_undo_goes_back_to_goes_only_where_it_is_named() -> None:
    spec = ServiceSpec(name="m", arguments=("--model", f"/home/u/hub/models--o--m/snapshots/{COMMIT}/m.gguf"))
    part = RolloutHost(host="a", wave=0, phase=HostPhase.CHANGED, before=Before(spec=spec, running=True))
    rollout = Rollout(number=7, plan_id="p", title="t", service="m", strategy=Strategy(), hosts=(part,))
    held = HostArtifacts(host="a", artifacts=(Artifact(repository="o/m", commit=COMMIT), Artifact(repository="o/n")))
    needed, free = with_ways_back(held, [rollout]).artifacts
    assert (needed.services, free.services) == (("undo of rollout 7",), ())
    undone = rollout.model_copy(update={"state": RolloutState.UNDONE})
    assert with_ways_back(held, [undone]) == held
    host = controller_pb2.HostArtifacts(
        host="a", artifacts=[artifact("o/m", brought=True, services=needed.services)]
    )  # fmt: skip
    assert removable([host], ()) == {}
    assert [one.repository for one in removable([host], ("o/m",))["a"]] == ["o/m"]


def test_only_what_fleet_brought_goes_unless_it_is_named() -> None:
    host = controller_pb2.HostArtifacts(
        host="a",
        artifacts=[
            artifact("o/ours", brought=True),
            artifact("o/served", brought=True, services=["chat"]),
            artifact("o/arriving", brought=True, jobs=["pull-1"]),
            artifact("o/theirs"),
        ],
    )
    silent = controller_pb2.HostArtifacts(host="b")
    assert [one.repository for one in removable([host, silent], ())["a"]] == ["o/ours"]
    assert [one.repository for one in removable([host], ("o/theirs", "o/served"))["a"]] == ["o/theirs"]
    assert removable([host], ("o/unknown",)) == {}
