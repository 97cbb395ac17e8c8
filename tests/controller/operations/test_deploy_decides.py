"""What a deploy takes where backend and quantization are open: the decision, from captured hosts and reference rows."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import InstallRequest
from fleet_controller.domain.facts import EngineFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest, PlanAction
from fleet_controller.domain.services import DesiredState, ServiceState, ServiceStatus
from fleet_controller.hub.resolve import resolve_with
from fleet_controller.operations import choosing_default, choosing_fit
from fleet_controller.operations.choosing_default import decider_for, joined
from fleet_controller.planning.plan import PlannedDeployment, plan_host
from fleet_controller.state import StateDatabase
from fleet_inventory.catalog import load_catalog
from fleet_inventory.hosts import Host
from support import golden_plans
from support.choosing_world import everything
from support.golden_plans import facts_of, listing


@pytest.fixture
def database(tmp_path: Path) -> StateDatabase:
    return StateDatabase(tmp_path / "fleet.db")


def deploy(
    facts: HostFacts, database: StateDatabase, services: tuple[ServiceStatus, ...] = (), **wishes: Any
) -> PlannedDeployment:
    request = DeployRequest(**wishes)
    resolved = joined(resolve_with(request, load_catalog(), listing), everything(request))
    return plan_host(Host(name="here", address="here"), facts, services, request, resolved, (),
                     decider_for(database, request))  # fmt: skip


def test_the_fastest_is_taken_and_the_plan_says_why_in_a_line(database: StateDatabase) -> None:
    plan = deploy(facts_of("m4"), database, model="qwen3.5-4b").plan
    assert (plan.backend, plan.quantization) == ("mlx-lm", "4bit")
    assert plan.because.startswith("mlx-lm 4bit: decode 39.02 t/s, ≈ measured; ")
    assert " ahead of llama.cpp " in plan.because
    plan = deploy(facts_of("rtx4090"), database, model="glm-4.7-flash", context_length=32768).plan
    assert (plan.backend, plan.quantization) == ("llama.cpp", "UD-Q4_K_XL")
    assert "132.3 t/s, measured on this chip" in plan.because


@pytest.mark.parametrize(
    ("host", "model", "quantization"),
    [
        ("rtx4090", "glm-4.7-flash", "UD-Q2_K_XL"),
        ("rtx4090", "qwen3.5-27b", "UD-Q4_K_XL"),
        ("rtx4090", "qwen3.5-35b-a3b", "UD-Q3_K_XL"),
        ("rtx4090", "qwen3.5-4b", "Q8_0"),
        ("m4", "qwen3.5-4b", "4bit"),
    ],
)
def test_what_the_notes_name_comes_out_as_without_a_decision(
    host: str, model: str, quantization: str, database: StateDatabase
) -> None:
    """Their commands name the file; the backend is open."""
    facts = facts_of(host)
    plain = golden_plans.deploy(facts, "here", model=model, quantization=quantization)
    decided = deploy(facts, database, model=model, quantization=quantization)
    assert decided.plan == plain.plan


def test_nothing_is_fitted_where_there_is_nothing_to_decide(
    database: StateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is to be fitted")

    monkeypatch.setattr(choosing_fit, "fitted", never)
    monkeypatch.setattr("fleet_controller.operations.choosing_knowledge.fitted", never)
    facts = facts_of("rtx4090")
    assert deploy(facts, database, model="qwen3.5-4b", quantization="Q8_0").plan.because == ""
    assert decider_for(database, DeployRequest(model="qwen3.5-4b", backend="llama.cpp", quantization="Q8_0")) is None
    # All candidates measured: 32 thousand tokens of GLM fit in both quantizations.
    assert deploy(facts, database, model="glm-4.7-flash", context_length=32768).plan.because
    with pytest.raises(AssertionError, match="nothing is to be fitted"):
        deploy(facts, database, model="qwen3.5-4b")


def with_vllm(facts: HostFacts) -> HostFacts:
    planned = BACKENDS["vllm"].plan_install(facts, InstallRequest(gpus=facts.gpus))
    engine = EngineFacts(backend="vllm", version=planned.version, managed=True, install_key=planned.install_key)
    return facts.model_copy(update={"engines": (engine,)})


def test_a_backend_that_is_taken_on_request_competes_where_it_is_installed(database: StateDatabase) -> None:
    facts = facts_of("rtx4090")
    request = DeployRequest(model="qwen3.5-4b", context_length=8192)
    resolved = joined(resolve_with(request, load_catalog(), listing), everything(request))
    asked: list[set[str]] = []

    def recording(*arguments: Any) -> None:
        asked.append({candidate.choice.backend for candidate in arguments[3]})

    host = Host(name="here", address="here")
    for seen in (facts, with_vllm(facts)):
        plan_host(host, seen, (), request, resolved, (), recording)
    assert asked[0] == {"llama.cpp"}
    assert asked[1] == {"llama.cpp", "vllm"}
    assert choosing_default.has_more(with_vllm(facts)) and not choosing_default.has_more(facts)


def test_what_runs_stays_and_is_changed_only_by_name(database: StateDatabase) -> None:
    facts = facts_of("rtx4090")
    first = deploy(facts, database, model="qwen3.5-4b", quantization="Q8_0")
    assert first.plan.service is not None
    running = ServiceStatus(spec=first.plan.service, state=ServiceState.READY, desired=DesiredState.RUNNING)
    engine = EngineFacts(backend="llama.cpp", version=first.plan.backend_version, managed=True,
                         install_key=first.plan.service.tool.install_key)  # fmt: skip
    there = facts.model_copy(update={"engines": (engine,)})
    again = deploy(there, database, (running,), model="qwen3.5-4b").plan
    assert (again.action, again.quantization, again.because) == (PlanAction.KEEP, "Q8_0", "")
    other = deploy(there, database, (running,), model="qwen3.5-4b", quantization="Q4_K_M").plan
    assert (other.action, other.quantization) == (PlanAction.REPLACE, "Q4_K_M")
