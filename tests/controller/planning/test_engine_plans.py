"""Plans about engines: what an upgrade moves, what may be removed, what gc keeps and why."""

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import InstallRequest
from fleet_controller.backends.pins import pinned_version
from fleet_controller.domain.engines import (
    EnginesAction,
    EnginesRequest,
    EnginesVerdict,
    InstallUse,
    Leftover,
    LeftoverKind,
)
from fleet_controller.domain.facts import DiskFacts, EngineFacts, GpuFacts, HostFacts, HostLayout, SystemFacts
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceStatus, ToolRun
from fleet_controller.domain.steps import ToolRef
from fleet_controller.planning.engine_removal import plan_collection, plan_removal
from fleet_controller.planning.engine_state import EngineState, Move, WayBack
from fleet_controller.planning.engines import Needs, plan_engines, unknown_options
from fleet_inventory.hosts import Host

HOST = Host(name="a", address="a")
LAYOUT = HostLayout(state_dir="/s", engines_dir="/s/engines", hf_home="/hf")
PATH = "/opt/llama/bin"


def engine(key: str, created: int | None, served: int | None = None, version: str = "b1") -> EngineFacts:
    return EngineFacts(
        backend="llama.cpp", version=version, managed=True, install_key=key, created_unix_ms=created,
        served_unix_ms=served,
    )  # fmt: skip


def facts(*engines: EngineFacts, **more: object) -> HostFacts:
    system = SystemFacts(os="linux", architecture="x86_64", python_version="3.12.3")
    return HostFacts.model_validate({"system": system, "layout": LAYOUT, "engines": engines, **more})


def service(key: str = "old", name: str = "tiny", **more: object) -> ServiceStatus:
    spec = ServiceSpec.model_validate(
        {
            "name": name, "backend": "llama.cpp", "backend_version": "b1", "port": 8080, "context_length": 512,
            "tool": ToolRef(install_key=key, name="bin/llama-server"), "arguments": ("--model", "/m.gguf", "--jinja"),
            **more,
        }
    )  # fmt: skip
    return ServiceStatus(spec=spec, desired=DesiredState.RUNNING)


def request(action: EnginesAction, **more: object) -> EnginesRequest:
    return EnginesRequest.model_validate({"action": action, "pattern": "a", "backend": "llama.cpp", **more})


def no_needs(_: ServiceSpec) -> Needs:
    return Needs()


UPGRADE = request(EnginesAction.UPGRADE, version="b2", engine_path=PATH)


def test_an_upgrade_changes_the_engine_of_a_service_and_nothing_else() -> None:
    status = service(
        after_stop=(ToolRun(tool=ToolRef(install_key="old", name="bin/x")), ToolRun(tool=ToolRef(name="lms")))
    )
    planned = plan_engines(HOST, EngineState(facts=facts(engine("old", 1)), services=(status,)), UPGRADE, no_needs)
    assert planned.plan.verdict is EnginesVerdict.CHANGE
    assert planned.plan.install_needed
    [move] = planned.moves
    key = planned.plan.install_key
    assert move.old == status.spec
    assert [run.tool.install_key for run in move.new.after_stop] == [key, ""]
    same = {"tool", "backend_version", "after_stop"}
    assert move.new.model_dump(exclude=same) == status.spec.model_dump(exclude=same)
    assert (move.new.tool.install_key, move.new.backend_version) == (key, "b2")
    assert planned.plan.commands[0].purpose == "install"
    [serve] = [command for command in planned.plan.commands if command.purpose == "serve"]
    assert serve.argv[0] == f"/s/engines/{key}/bin/llama-server"
    assert "smoke test" in [command.purpose for command in planned.plan.commands]


def test_install_only_and_install_leave_services_alone() -> None:
    state = EngineState(facts=facts(), services=(service(),))
    for one in (UPGRADE.model_copy(update={"install_only": True}), request(EnginesAction.INSTALL, engine_path=PATH)):
        planned = plan_engines(HOST, state, one, no_needs)
        assert len(planned.jobs) == 1
        assert planned.moves == ()


def test_the_same_install_is_the_same_job() -> None:
    first = plan_engines(HOST, EngineState(facts=facts()), UPGRADE, no_needs)
    again = plan_engines(HOST, EngineState(facts=facts(taken_unix_ms=5)), UPGRADE, no_needs)
    assert first.jobs == again.jobs
    other = plan_engines(HOST, EngineState(facts=facts(machine_id="m2")), UPGRADE, no_needs)
    assert other.jobs[0].job_id != first.jobs[0].job_id


def test_a_move_that_was_cut_off_is_taken_up_and_one_that_was_proven_is_not() -> None:
    first = plan_engines(HOST, EngineState(facts=facts(), services=(service(),)), UPGRADE, no_needs)
    [move] = first.moves
    there = facts(engine(first.plan.install_key, 2, version="b2"))
    moved = ServiceStatus(spec=move.new, desired=DesiredState.RUNNING)
    begun = EngineState(facts=there, services=(moved,), unfinished=(move,))
    assert plan_engines(HOST, begun, UPGRADE, no_needs).moves == (move,)
    stale = Move(old=move.old, new=move.new.model_copy(update={"port": 9999}))
    for unfinished in ((), (stale,)):
        done = EngineState(facts=there, services=(moved,), unfinished=unfinished)
        assert plan_engines(HOST, done, UPGRADE, no_needs).plan.verdict is EnginesVerdict.KEEP


def test_a_model_with_packages_of_its_own_gets_an_install_of_its_own() -> None:
    status = service(backend="mlx-lm", tool=ToolRef(install_key="old", name="venv/bin/python3"))
    wanted = EnginesRequest(action=EnginesAction.UPGRADE, pattern="a", backend="mlx-lm")
    state = EngineState(facts=facts(), services=(status,))
    planned = plan_engines(HOST, state, wanted, lambda spec: Needs(version="0.31.1"))
    assert len(planned.jobs) == 2
    assert planned.moves[0].new.backend_version == "0.31.1"


def test_a_full_disk_refuses_before_anything_is_built() -> None:
    disk = DiskFacts(purpose="engines", path="/s/engines", free_bytes=1000)
    state = EngineState(facts=facts(disks=(disk,)))
    planned = plan_engines(HOST, state, EnginesRequest(action=EnginesAction.INSTALL, backend="mlx-lm"), no_needs)
    assert planned.plan.verdict is EnginesVerdict.REFUSE
    assert planned.plan.problem is not None
    assert planned.plan.problem.code == "disk-full"


def test_a_backend_that_cannot_run_there_fails_with_the_reason() -> None:
    wanted = EnginesRequest(action=EnginesAction.INSTALL, backend="mlx-lm")
    musl = facts().model_copy(update={"system": SystemFacts(os="linux", architecture="x86_64", libc="musl 1.2")})
    planned = plan_engines(HOST, EngineState(facts=musl), wanted, no_needs)
    assert planned.plan.verdict is EnginesVerdict.FAIL
    assert "musl" in planned.plan.reason


def test_a_version_for_the_cpu_needs_no_gpu() -> None:
    wanted = EnginesRequest(action=EnginesAction.INSTALL, backend="vllm")
    assert plan_engines(HOST, EngineState(facts=facts()), wanted, no_needs).plan.verdict is EnginesVerdict.FAIL
    cpu = wanted.model_copy(update={"version": "0.26.0+cpu"})
    assert plan_engines(HOST, EngineState(facts=facts()), cpu, no_needs).plan.verdict is EnginesVerdict.CHANGE


def test_what_a_backend_refuses_is_refused() -> None:
    wanted = EnginesRequest(action=EnginesAction.INSTALL, backend="lm-studio", version="0.3")
    assert plan_engines(HOST, EngineState(facts=facts()), wanted, no_needs).plan.verdict is EnginesVerdict.REFUSE


def test_lm_studio_is_updated_where_it_is_and_installed_by_its_script_only() -> None:
    upgrade = EnginesRequest(action=EnginesAction.UPGRADE, backend="lm-studio")
    missing = plan_engines(HOST, EngineState(facts=facts()), upgrade, no_needs).plan
    assert missing.verdict is EnginesVerdict.REFUSE and missing.problem is not None
    there = facts(EngineFacts(backend="lm-studio", path="/home/lab/.lmstudio/bin/lms"))
    plan = plan_engines(HOST, EngineState(facts=there), upgrade, no_needs).plan
    assert [command.argv[1:] for command in plan.commands] == [("daemon", "up"), ("runtime", "update", "-y")]
    install = upgrade.model_copy(update={"action": EnginesAction.INSTALL})
    assert plan_engines(HOST, EngineState(facts=there), install, no_needs).plan.verdict is EnginesVerdict.KEEP


def test_options_that_the_new_build_does_not_list() -> None:
    spec = service(arguments=("--model", "/m", "--jinja", "--fit=on", "-c", "5")).spec
    assert unknown_options(facts(engine("old", 1)), spec) == ()  # nobody read its help
    known = engine("old", 1).model_copy(update={"flags": ("--model", "-c")})
    assert unknown_options(facts(known), spec) == ("--jinja", "--fit")


def test_a_removal_names_all_installs_of_the_version_and_is_refused_for_one_in_use() -> None:
    there = facts(engine("k1", 1), engine("k2", 2), engine("k3", 3, version="b9"))
    wanted = request(EnginesAction.REMOVE, version="b1")
    free = EngineState(facts=there, installs=(InstallUse(install_key="k1", size_bytes=10, shared_bytes=4),))
    plan = plan_engines(HOST, free, wanted, no_needs).plan
    assert [(one.install_key, one.freed_bytes) for one in plan.removals] == [("k1", 6), ("k2", 0)]
    for use in (InstallUse(install_key="k2", services=("tiny",)), InstallUse(install_key="k2", jobs=("bench",))):
        refused = plan_engines(HOST, EngineState(facts=there, installs=(use,)), wanted, no_needs).plan
        assert refused.verdict is EnginesVerdict.REFUSE
        assert refused.removals == ()
    by_key = plan_engines(HOST, free, EnginesRequest(action=EnginesAction.REMOVE, install_key="k3"), no_needs).plan
    assert [one.install_key for one in by_key.removals] == ["k3"]


def collected(*engines: EngineFacts, keep: int = 1, **more: object) -> tuple[list[str], dict[str, str]]:
    state = EngineState.model_validate({"facts": facts(*engines), **more})
    plan = plan_collection("a", state, EnginesRequest(action=EnginesAction.COLLECT, keep=keep))
    return [one.install_key for one in plan.removals], {one.install_key: one.reason for one in plan.kept}


def test_gc_takes_what_a_newer_one_that_served_made_superfluous() -> None:
    removed, kept = collected(engine("old", 1, 1), engine("failed", 2), engine("good", 3, 5), engine("fresh", 4))
    assert removed == ["failed", "old"]
    assert kept == {"good": "the newest that has served", "fresh": "nothing newer has served"}


def test_gc_keeps_the_old_one_while_the_new_one_never_served() -> None:
    removed, kept = collected(engine("old", 1, 1), engine("new", 2))
    assert removed == []
    assert set(kept) == {"old", "new"}


def test_gc_keeps_what_a_cut_off_upgrade_may_have_to_go_back_to() -> None:
    move = Move(old=service("old").spec, new=service("new").spec)
    removed, kept = collected(engine("old", 1, 1), engine("new", 2, 2), unfinished=(move,))
    assert removed == []
    assert kept["old"] == "tiny may have to go back to it"


def test_gc_keeps_what_an_undo_goes_back_to() -> None:
    way = WayBack(install_key="old", why="undoing rollout 7 goes back to it")
    removed, kept = collected(engine("old", 1, 1), engine("new", 2, 2), undoes=(way,))
    assert (removed, kept["old"]) == ([], "undoing rollout 7 goes back to it")


def test_a_removal_is_refused_while_an_upgrade_may_go_back_to_it_and_granted_over_an_undo() -> None:
    move = Move(old=service("old").spec, new=service("new").spec)
    state = EngineState(facts=facts(engine("old", 1, 1)), unfinished=(move,))
    request = EnginesRequest(action=EnginesAction.REMOVE, install_key="old")
    refused = plan_removal("a", state, request)
    assert refused.problem is not None
    assert "may have to go back" in refused.problem.message
    undo = EngineState(facts=facts(engine("old", 1, 1)), undoes=(WayBack(install_key="old", why="undo"),))
    assert [one.install_key for one in plan_removal("a", undo, request).removals] == ["old"]


def test_gc_keeps_so_many_that_served() -> None:
    assert collected(engine("a", 1, 1), engine("b", 2, 2), engine("c", 3, 3), keep=2)[0] == ["a"]
    assert collected(engine("a", 1, 1), engine("b", 2, 2), keep=0)[0] == ["a"]


def test_gc_keeps_what_is_used_pinned_or_of_unknown_age() -> None:
    pin = pinned_version(BACKENDS["llama.cpp"])
    removed, kept = collected(
        engine("used", 1, 1), engine("pin", 1, version=pin), engine("ageless", None), engine("new", 9, 9),
        installs=(InstallUse(install_key="used", services=("tiny",)),),
    )  # fmt: skip
    assert removed == []
    assert kept["used"] == "used by tiny"
    assert kept["pin"] == "the pinned version"
    assert kept["ageless"] == "its age is not known"


def test_gc_leaves_engines_of_others_and_leftovers_in_use() -> None:
    foreign = EngineFacts(backend="llama.cpp", version="b1", path="/usr/bin/llama-server")
    waste = Leftover(path="x.tmp", kind=LeftoverKind.UNFINISHED, size_bytes=7)
    busy = Leftover(path="y.build", kind=LeftoverKind.BUILD, used_by=("job",))
    state = EngineState(facts=facts(foreign, engine("new", 9, 9)), leftovers=(waste, busy))
    plan = plan_collection("a", state, EnginesRequest(action=EnginesAction.COLLECT))
    assert plan.removals == ()
    assert plan.leftovers == (waste,)


@pytest.mark.parametrize("name", sorted(name for name, backend in BACKENDS.items() if pinned_version(backend)))
def test_every_pin_is_the_version_that_an_install_of_it_would_name(name: str) -> None:
    """Else `backends list` would mark nothing, and gc would remove the pin."""
    gpu = GpuFacts(name="NVIDIA H100", compute_capability_major=9, compute_capability_minor=0)
    asked = InstallRequest(gpus=(gpu,))
    assert BACKENDS[name].plan_install(facts(gpus=(gpu,)), asked).version == pinned_version(BACKENDS[name])
