"""What a pull does on each host, from what hosts hold; and what of a deploy is worth a pull."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.pull_command import PullOptions, request_of
from fleet_controller.cli.pull_display import bar
from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.facts import DiskFacts, HostFacts, HostLayout
from fleet_controller.domain.plan import HostPlan, PlanAction
from fleet_controller.domain.pulls import PulledFiles, PullPart, PullRequest, PullSource, PullState
from fleet_controller.domain.steps import ArtifactFile, HubDownloadStep, JobSpec, Step
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import PlannedHost
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.pull_deploy import shared_pulls
from fleet_controller.operations.pull_plan import Seen, _planned
from fleet_controller.operations.pull_wanted import hub_endpoint
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.pulling.store import PullStore
from fleet_controller.settings import Settings
from fleet_inventory.hosts import Host
from fleet_proto.v1 import controller_pb2

COMMIT = "c" * 40
FILES = PulledFiles(
    repository="lab/model",
    commit=COMMIT,
    files=(
        ArtifactFile(path="a", size_bytes=100, git_blob_id="1" * 40),
        ArtifactFile(path="b", size_bytes=50, sha256="2" * 64),
    ),
)
HUB = PullSource(endpoints=("",), words="https://huggingface.co")


@pytest.fixture
def context(tmp_path: Path) -> FleetContext:
    return FleetContext(Settings(tmp_path / "hosts.yaml", tmp_path / "state", tmp_path / "run"))


def seen(*held: str, free: int | None = 10_000) -> Seen:
    disk = DiskFacts(purpose="models", path="/hf", free_bytes=free)
    facts = HostFacts(layout=HostLayout(state_dir="/s", engines_dir="/e", hf_home="/hf"), disks=(disk,))
    other = Artifact(repository="lab/model", commit="d" * 40, files=("a", "b"))
    return Seen(facts, (other, Artifact(repository="lab/model", commit=COMMIT, files=held)))


def planned(context: FleetContext, hosts: dict[str, Seen], source: PullSource = HUB, asked: str = "") -> Any:
    there = [(Host(name=name, address=name), state) for name, state in hosts.items()]
    names = asked.split() or list(hosts)
    return _planned(context, PullRequest(pattern="all"), FILES, source, there, names, ())


def parts(pull: Any) -> dict[str, PullPart]:
    return {host.host: host.part for host in pull.hosts}


def test_what_lacks_is_fetched_and_what_does_not_fit_is_refused(context: FleetContext) -> None:
    pull = planned(context, {"new": seen(), "half": seen("a"), "full": seen(free=149)})
    assert parts(pull) == {"new": PullPart.FETCH, "half": PullPart.FETCH, "full": PullPart.REFUSE}
    assert {host.host: host.missing_bytes for host in pull.hosts} == {"new": 150, "half": 50, "full": 150}
    assert pull.hosts[2].problem.code == "disk-full"
    assert pull.source.words == "https://huggingface.co"


def test_a_host_with_a_part_of_it_judges_by_itself_whether_the_rest_fits(context: FleetContext) -> None:
    first = planned(context, {"a": seen(free=200), "b": seen(free=200)})
    store = PullStore(context.database)
    store.create(first)
    store.stop(first.pull_id)
    again = planned(context, {"a": seen(free=60), "c": seen(free=60)})
    assert parts(again) == {"a": PullPart.FETCH, "c": PullPart.REFUSE}
    store.end(first.pull_id, PullState.DONE)
    assert parts(planned(context, {"a": seen(free=60)})) == {"a": PullPart.REFUSE}


def test_who_has_all_of_it_gives_it_to_the_others(context: FleetContext) -> None:
    pull = planned(context, {"a": seen(), "b": seen("a", "b"), "c": seen("a", "b")})
    assert parts(pull) == {"a": PullPart.FETCH, "b": PullPart.HEAD, "c": PullPart.HAS}
    assert pull.source.host == "b"
    nothing = planned(context, {"b": seen("a", "b"), "c": seen("a", "b")})
    assert set(parts(nothing).values()) == {PullPart.HAS}


def test_a_source_beside_the_hosts_serves_them_and_one_that_lacks_it_is_refused(context: FleetContext) -> None:
    source = HUB.model_copy(update={"host": "s"})
    pull = planned(context, {"a": seen(), "s": seen("a", "b")}, source, asked="a")
    assert parts(pull) == {"a": PullPart.FETCH, "s": PullPart.HEAD}
    with pytest.raises(OperationError, match="s does not have lab/model"):
        planned(context, {"a": seen(), "s": seen("a")}, source, asked="a")
    folder = source.model_copy(update={"folder": "/models"})
    assert parts(planned(context, {"a": seen(), "s": seen()}, folder, asked="a"))["s"] is PullPart.HEAD


def test_the_same_work_is_gone_on_with_and_another_terminal_is_told(context: FleetContext) -> None:
    first = planned(context, {"a": seen(), "b": seen()})
    store = PullStore(context.database)
    store.create(first)
    again = planned(context, {"a": seen("a", "b"), "b": seen("a")})  # half-way
    assert (again.pull_id, again.resumes, again.hosts) == (first.pull_id, True, first.hosts)
    assert planned(context, {"a": seen()}).pull_id != first.pull_id
    with store.carrying_out(first.pull_id), pytest.raises(OperationError, match="another terminal"):
        planned(context, {"a": seen(), "b": seen()})


def deployed(name: str, download_bytes: int, offline: bool = False, commit: str = COMMIT) -> PlannedHost:
    step = HubDownloadStep(repository="lab/model", commit=commit, files=FILES.files, offline=offline)
    job = JobSpec(job_id="j", title="t", steps=(Step(name="fetch", hub_download=step),))
    shown = HostPlan(host=name, action=PlanAction.START, download_bytes=download_bytes)
    return PlannedHost(deployment=PlannedDeployment(plan=shown, prepare=job))


def test_hosts_of_a_deploy_that_lack_the_same_are_one_pull() -> None:
    hosts = [
        deployed("a", 150),
        deployed("b", 150),
        deployed("other", 9, commit="e" * 40),
        deployed("off", 150, offline=True),
    ]
    (pull,) = shared_pulls(hosts)
    assert {host.host: host.part for host in pull.hosts} == {"a": PullPart.FETCH, "b": PullPart.FETCH}
    assert shared_pulls(hosts)[0].digest == pull.digest
    assert shared_pulls([deployed("a", 150)]) == []
    assert shared_pulls([deployed("a", 0), deployed("b", 0)]) == []
    (pull,) = shared_pulls([deployed("a", 150), deployed("has", 0)])
    assert (pull.source.host, pull.hosts[1].part) == ("has", PullPart.HEAD)


@pytest.mark.parametrize(
    ("typed", "endpoint"), [("", ""), ("host:a", ""), ("https://mirror.example/", "https://mirror.example")]
)
def test_what_a_source_may_be(typed: str, endpoint: str) -> None:
    assert hub_endpoint(typed) == endpoint


@pytest.mark.parametrize("typed", ["gpu1", "ftp://x", "http://", "/folder"])
def test_what_a_source_may_not_be(typed: str) -> None:
    with pytest.raises(OperationError, match="neither a hub nor a host"):
        hub_endpoint(typed)


def test_what_is_typed_becomes_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    here = request_of(PullOptions(pattern="all", repository="o/m", folder="./model", rate="50MB"))
    assert (here.folder, here.folder_host, here.rate_bytes_per_second) == (str(tmp_path / "model"), "", 50_000_000)
    there = request_of(PullOptions(pattern="all", repository="o/m", folder="gpu1:/models/m", rate="1.5 GiB/s"))
    assert (there.folder, there.folder_host, there.rate_bytes_per_second) == ("/models/m", "gpu1", 3 << 29)
    with pytest.raises(UsageFailure, match="--rate"):
        request_of(PullOptions(pattern="all", model="m", rate="fast"))
    with pytest.raises(UsageFailure, match="name a model"):
        request_of(PullOptions(pattern="all"))


def test_one_bar_for_the_fleet() -> None:
    event = controller_pb2.HostEvent(host="all", done_units=1, total_units=3)
    assert bar(event).split() == ["━" * 10, "33", "%"]
    assert bar(controller_pb2.HostEvent(host="all")).split() == ["0", "%"]
    assert bar(controller_pb2.HostEvent(host="all", done=True)).split() == ["━" * 30, "100", "%"]
