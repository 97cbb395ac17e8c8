"""LM Studio: what lms is told, where models lie in its store, what is refused, and plans of hosts that have it."""

import re
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import (
    BackendError,
    Benches,
    Installation,
    InstallRequest,
    KeepsModels,
    ServeOptions,
    SharesServer,
)
from fleet_controller.backends.lm_studio import INSTALL_COMMAND, LmStudio
from fleet_controller.domain.facts import HostFacts, SystemFacts, ToolFacts
from fleet_controller.domain.plan import FitVerdict, PlanAction
from fleet_controller.domain.resolved import GGUF, LMSTUDIO, MLX, ModelArtifact
from fleet_controller.domain.services import DesiredState, ServiceState, ServiceStatus
from fleet_controller.domain.steps import ArtifactFile, InstallerScript
from fleet_controller.planning.devices import memory_pool
from fleet_controller.planning.plan import PlannedDeployment
from support import golden_plans
from support.golden_plans import check_golden, facts_of
from support.lab_notes import differences, shell_commands, substituted

LMS_PATH = "/home/lab/.lmstudio/bin/lms"
STUDIO = LmStudio()
INSTALLATION = Installation(backend="lm-studio", version="", install_key="")
CATALOG_ENTRY = ModelArtifact(format=LMSTUDIO, quantization="Q4_K_M", repository="zai-org/glm-4.7-flash")
HUB_FILE = ModelArtifact(
    format=GGUF,
    repository="unsloth/X-GGUF",
    commit="0123456789abcdef",
    files=(ArtifactFile(path="Q8/X-Q8_0.gguf", size_bytes=1), ArtifactFile(path="README.md", size_bytes=1)),
)
NOTES = Path(__file__).parent / "data" / "lab-notes-lm-studio-excerpt.md"
LAB_NOTES = Path(__file__).parents[4] / "shared" / "lab-notes.md"


def with_lms(host: str) -> HostFacts:
    facts = facts_of(host)
    return facts.model_copy(update={"tools": (*facts.tools, ToolFacts(name="lms", path=LMS_PATH))})


def deploy(facts: HostFacts, services: tuple[ServiceStatus, ...] = (), **wishes: Any) -> PlannedDeployment:
    asked = {"model": "glm-4.7-flash", "backend": "lm-studio", **wishes}
    return golden_plans.deploy(facts, "rtx4090", services=services, **asked)


def served(deployment: PlannedDeployment) -> ServiceStatus:
    assert deployment.plan.service is not None
    return ServiceStatus(
        spec=deployment.plan.service, state=ServiceState.READY, desired=DesiredState.RUNNING, resident_bytes=1
    )


def options(**more: Any) -> ServeOptions:
    values = {"model_name": "glm", "model_path": "zai-org/glm", "context_tokens": 4096, "port": 1234, **more}
    return ServeOptions(**values)


def test_it_is_in_the_table_with_its_traits() -> None:
    studio = BACKENDS["lm-studio"]
    assert isinstance(studio, SharesServer) and isinstance(studio, KeepsModels)
    assert not isinstance(studio, Benches)  # LM Studio has no benchmark of its own: it is benched over HTTP


def test_the_server_is_driven_and_its_log_is_what_runs() -> None:
    command = STUDIO.serve(INSTALLATION, options(max_parallel=2))
    assert (command.tool.name, command.tool.install_key) == ("lms", "")
    assert command.arguments == ("log", "stream", "--json", "--stats")
    assert [run.arguments for run in command.before_start] == [
        ("daemon", "up"),
        ("server", "start", "--port", "1234", "--bind", "127.0.0.1"),
        ("load", "--exact", "zai-org/glm", "--context-length", "4096", "--identifier", "fleet-glm", "--gpu", "max",
         "-y", "--parallel", "2"),
        ("ps", "--json"),
    ]  # fmt: skip
    assert [run.arguments for run in command.after_stop] == [("unload", "fleet-glm")]
    assert command.served_model_name == "fleet-glm"
    assert command.shared_port_path == "/lmstudio-greeting"
    assert command.metrics is None


def test_loading_may_take_as_long_as_the_model_is_large() -> None:
    limits = [
        STUDIO.serve(INSTALLATION, options(weights_bytes=size)).before_start[2].limit_seconds for size in (0, 10**11)
    ]
    assert limits[1] - limits[0] == 1000


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.4"])
def test_an_address_that_others_reach_is_refused(address: str) -> None:
    with pytest.raises(BackendError, match="no API key") as refusal:
        STUDIO.serve(INSTALLATION, options(host=address))
    assert refusal.value.refused
    plan = deploy(with_lms("rtx4090"), bind_address=address).plan
    assert plan.action is PlanAction.REFUSE


def test_an_entry_of_its_catalog_is_fetched_by_lm_studio() -> None:
    assert STUDIO.model_path(CATALOG_ENTRY, "/hf") == "zai-org/glm-4.7-flash"
    runs = [step.run_tool for step in STUDIO.store_steps(CATALOG_ENTRY, "/hf")]
    assert [run.arguments for run in runs if run] == [("daemon", "up"), ("get", "zai-org/glm-4.7-flash", "-y")]
    assert "zai-org/glm-4.7-flash" in STUDIO.store_warning(CATALOG_ENTRY)


def test_an_mlx_repository_is_fetched_by_its_address() -> None:
    artifact = ModelArtifact(format=MLX, repository="mlx-community/X-4bit", commit="0123")
    assert STUDIO.model_path(artifact, "/hf") == "mlx-community/X-4bit"
    (_, step) = STUDIO.store_steps(artifact, "/hf")
    assert step.run_tool and step.run_tool.arguments == ("get", "https://huggingface.co/mlx-community/X-4bit", "-y")
    with pytest.raises(ValueError, match="from the hub only"):
        STUDIO.model_path(ModelArtifact(format=MLX, local_path="/models/x"), "/hf")


def test_a_gguf_of_the_cache_is_linked_under_its_commit() -> None:
    (step,) = STUDIO.store_steps(HUB_FILE, "/hf")
    assert step.run_tool is not None
    path = "/hf/hub/models--unsloth--X-GGUF/snapshots/0123456789abcdef/Q8/X-Q8_0.gguf"
    folder = "unsloth/X-GGUF-01234567"
    assert step.run_tool.arguments == ("import", "--yes", "--symbolic-link", "--user-repo", folder, path)
    assert step.run_tool.already_done_text == "Target file already exists"
    assert STUDIO.model_path(HUB_FILE, "/hf") == f"{folder}/X-Q8_0.gguf"
    assert not STUDIO.fetches(HUB_FILE) and not STUDIO.store_warning(HUB_FILE)


def test_a_file_on_the_host_is_linked() -> None:
    artifact = ModelArtifact(format=GGUF, local_path="/models/tiny.gguf")
    other = ModelArtifact(format=GGUF, local_path="/elsewhere/tiny.gguf")
    paths = [STUDIO.model_path(one, "/hf") for one in (artifact, other)]
    assert all(re.fullmatch(r"local/tiny-[0-9a-f]{8}/tiny\.gguf", path) for path in paths)
    assert paths[0] != paths[1]  # one name, two files


@pytest.mark.parametrize(
    ("request_", "word"),
    [(InstallRequest(version="0.4.2"), "side by side"), (InstallRequest(engine_path="/opt/x"), "by its `lms`")],
)
def test_versions_and_folders_are_refused(request_: InstallRequest, word: str) -> None:
    with pytest.raises(BackendError, match=word) as refusal:
        STUDIO.plan_install(with_lms("rtx4090"), request_)
    assert refusal.value.refused and refusal.value.remedy


def test_a_host_without_it_is_refused_with_the_official_command() -> None:
    plan = deploy(facts_of("rtx4090")).plan
    assert plan.action is PlanAction.REFUSE  # exit code 3
    assert plan.problem is not None and plan.problem.code == "lm-studio-missing"
    assert INSTALL_COMMAND in plan.problem.remedy
    assert "run" not in {command.purpose for command in plan.commands}


def test_install_is_the_script_of_the_notes() -> None:
    assert INSTALL_COMMAND == "curl -fsSL https://lmstudio.ai/install.sh | bash"
    script = InstallerScript(url=STUDIO.installer_url, sha256="a" * 64)
    plan = deploy(facts_of("rtx4090"), run_installer=True, installer=script).plan
    [command] = [one for one in plan.commands if one.purpose == "install"]
    assert command.argv[0] == "/bin/bash" and command.argv[1].endswith(f"/installers/{'a' * 64}.sh")
    assert any(script.url in warning and script.sha256 in warning for warning in plan.warnings)
    assert plan.install_needed and plan.commands.index(command) == 0
    present = deploy(with_lms("rtx4090"), run_installer=True, installer=script).plan
    assert not present.install_needed and not [one for one in present.commands if one.purpose == "install"]


def test_where_it_does_not_run() -> None:
    facts = facts_of("rtx4090")
    intel = facts.model_copy(update={"system": SystemFacts(os="darwin", architecture="x86_64")})
    assert "Apple silicon" in (STUDIO.unsupported_reason(intel) or "")
    assert STUDIO.unsupported_reason(facts) is None


def test_version_of_lms() -> None:
    assert STUDIO.parse_version('{"version":"07b7252"}') == "07b7252"
    assert STUDIO.parse_version("lms - LM Studio CLI") is None


def test_it_is_never_chosen_unasked() -> None:
    assert deploy(with_lms("rtx4090"), backend="").plan.backend == "llama.cpp"


def test_a_second_service_is_on_the_port_of_the_first_and_no_other() -> None:
    facts = with_lms("rtx4090")
    first = deploy(facts)
    assert first.plan.port == 1234
    second = deploy(facts, (served(first),), model="qwen3.5-4b", quantization="Q8_0")
    assert second.plan.port == 1234, second.plan.problem
    other = deploy(facts, (served(first),), model="qwen3.5-4b", quantization="Q8_0", port=1235)
    assert other.plan.action is PlanAction.REFUSE
    assert other.plan.problem is not None and "--port 1234" in other.plan.problem.remedy
    llama = deploy(facts, (served(first),), model="qwen3.5-4b", quantization="Q8_0", backend="llama.cpp", port=1234)
    assert llama.plan.action is PlanAction.REFUSE


def test_a_model_that_leaves_lm_studio_leaves_its_port() -> None:
    facts = with_lms("rtx4090")
    studio = served(deploy(facts, model="qwen3.5-4b", quantization="Q8_0"))
    llama = deploy(facts, (studio,), model="qwen3.5-4b", quantization="Q8_0", backend="llama.cpp")
    assert (llama.plan.action, llama.plan.port) == (PlanAction.REPLACE, 8080)
    back = deploy(facts, (served(llama),), model="qwen3.5-4b", quantization="Q8_0")
    assert (back.plan.action, back.plan.port) == (PlanAction.REPLACE, 1234)


def test_mlx_is_for_apple_only() -> None:
    plan = golden_plans.deploy(with_lms("m4"), "m4", model="qwen3.5-4b", quantization="4bit", backend="lm-studio").plan
    assert plan.action is PlanAction.START, plan.problem
    plan = deploy(with_lms("rtx4090"), model="qwen3.5-4b", quantization="4bit").plan
    assert plan.action is PlanAction.FAIL


# --- the lab notes ---


@pytest.mark.skipif(not LAB_NOTES.exists(), reason="the lab notes lie beside the checkout, and are not there")
def test_the_excerpt_is_the_notes_own_text() -> None:
    block = NOTES.read_text(encoding="utf-8").partition("\n")[2]
    assert block in LAB_NOTES.read_text(encoding="utf-8")


def test_the_notes_commands_are_ours() -> None:
    deployment = deploy(with_lms("rtx4090"))
    assert deployment.plan.action is PlanAction.START and deployment.plan.fit is FitVerdict.FITS
    ours = [list(command.argv) for command in deployment.plan.commands if command.argv]
    notes = shell_commands(NOTES.read_text(encoding="utf-8"))
    assert [words[1:3] for words in notes] == [
        ["get"], ["server", "start"], ["load", "glm-4.7-flash"], ["ps"], ["log", "stream"]
    ]  # fmt: skip
    for words in notes:
        optional = [word for word in words if not word.startswith("[")]  # [--context-length=1-N]
        expected = substituted(optional, {"lms": LMS_PATH})
        reports = [differences(expected, command) for command in ours]
        assert [] in reports, (expected, reports)


@pytest.mark.parametrize("position", range(3))
def test_a_changed_word_of_the_notes_is_reported(position: int) -> None:
    ours = [list(command.argv) for command in deploy(with_lms("rtx4090")).plan.commands if command.argv]
    words = substituted(["~/.lmstudio/bin/lms", "load", "glm-4.7-flash"], {"lms": LMS_PATH})
    words[position] += "x"
    assert all(differences(words, command) for command in ours)


def test_dry_run_is_exactly_the_golden_file() -> None:
    check_golden(deploy(with_lms("rtx4090")).plan, "rtx4090_glm-4.7-flash-lm-studio")


def test_a_replaced_model_gives_back_what_lm_studio_holds_for_it() -> None:
    facts = with_lms("rtx4090")
    former = served(deploy(facts))
    before = memory_pool(facts, facts.gpus, (), None).free_bytes
    full = facts.gpus[0].model_copy(update={"memory_free_bytes": 1_000_000_000})
    pool = memory_pool(facts.model_copy(update={"gpus": (full,)}), (full,), (former,), former)
    assert before is not None and pool.free_bytes == min(
        1_000_000_000 + former.spec.promised_memory_bytes, full.memory_total_bytes or 0
    )
