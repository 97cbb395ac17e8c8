"""plan_host: start, keep, replace, refuse, fail; ports, ids and neighbours."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.facts import AppleFacts, EngineFacts, GpuProcess, HostFacts, ToolFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict, PlanAction
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile, ToolRef
from fleet_controller.planning.plan import PlannedDeployment, plan_host, retried, unreachable_plan
from fleet_controller.wire import from_wire, to_wire
from fleet_inventory.hosts import Host, Limits, PortRange
from fleet_proto.v1 import services_pb2

DATA = Path(__file__).parent / "data"
GPU_HOST = HostFacts.model_validate_json((DATA / "rtx4090.facts.json").read_text(encoding="utf-8"))
MAC = HostFacts.model_validate_json((DATA / "m4.facts.json").read_text(encoding="utf-8"))
CPU_HOST = GPU_HOST.model_copy(update={"gpus": (), "nvidia": None})
GB = 10**9
SHAPE = ModelShape(layers=32, kv_layers=8, kv_heads=4, key_length=256, value_length=256, context_length=32768)


def artifact(quantization: str, size_bytes: int, artifact_format: str = "gguf") -> ModelArtifact:
    name = f"m-{quantization}.gguf" if artifact_format == "gguf" else "model.safetensors"
    file = ArtifactFile(path=name, size_bytes=size_bytes, sha256="a" * 64)
    return ModelArtifact(
        format=artifact_format,
        quantization=quantization,
        repository=f"acme/m-{artifact_format}",
        commit="c" * 40,
        files=(file,),
        weights_bytes=size_bytes,
    )


MODEL = ResolvedModel(
    name="m",
    max_context=32768,
    shape=SHAPE,
    sampling=(("temp", "0.7"),),
    artifacts=(artifact("Q4", 5 * GB), artifact("Q8", 9 * GB), artifact("Q2", 3 * GB), artifact("4bit", 5 * GB, "mlx")),
)


def plan(
    facts: HostFacts = GPU_HOST,
    services: tuple[ServiceStatus, ...] = (),
    host: Host | None = None,
    model: ResolvedModel = MODEL,
    cached: tuple[Artifact, ...] = (),
    **wishes: Any,
) -> PlannedDeployment:
    request = DeployRequest(model="m", **wishes)
    return plan_host(host or Host(name="gpu1", address="gpu1"), facts, services, request, model, cached)


def running(deployment: PlannedDeployment, **changes: Any) -> ServiceStatus:
    """The planned service as the agent reports it once it runs: over the wire."""
    assert deployment.plan.service is not None
    spec = from_wire(ServiceSpec, to_wire(deployment.plan.service, services_pb2.ServiceSpec))
    values = {"state": ServiceState.READY, "desired": DesiredState.RUNNING, "gpu_memory_bytes": 11 * GB, **changes}
    return ServiceStatus(spec=spec, **values)


def other_service(port: int, promised_bytes: int = 0, gpu_indices: tuple[int, ...] = ()) -> ServiceStatus:
    spec = ServiceSpec(
        name=f"other-{port}",
        backend="llama.cpp",
        tool=ToolRef(name="x"),
        port=port,
        promised_memory_bytes=promised_bytes,
        gpu_indices=gpu_indices,
    )
    return ServiceStatus(spec=spec, state=ServiceState.READY, desired=DesiredState.RUNNING)


def with_gpu(**changes: Any) -> HostFacts:
    return GPU_HOST.model_copy(update={"gpus": (GPU_HOST.gpus[0].model_copy(update=changes),)})


# ---- choice


def test_the_largest_quantization_that_fits_is_taken() -> None:
    assert plan().plan.quantization == "Q8"
    assert plan(with_gpu(memory_free_bytes=8 * GB)).plan.quantization == "Q4"
    assert plan().plan.backend == "llama.cpp"
    assert plan().plan.fit is FitVerdict.FITS


def test_where_none_fits_the_one_that_spills_least_is_taken_with_a_warning() -> None:
    tight = plan(with_gpu(memory_free_bytes=3 * GB)).plan
    assert (tight.quantization, tight.fit) == ("Q2", FitVerdict.FITS_WITH_OFFLOAD)
    assert any("on the CPU" in warning for warning in tight.warnings)


def test_apple_prefers_mlx_where_there_is_an_mlx_artifact() -> None:
    assert plan(MAC).plan.backend == "mlx-lm"
    gguf_only = MODEL.model_copy(update={"artifacts": MODEL.artifacts[:3]})
    assert plan(MAC, model=gguf_only).plan.backend == "llama.cpp"
    assert plan(MAC, backend="llama_cpp").plan.backend == "llama.cpp"


def test_a_shorter_context_is_said_where_nobody_asked_for_one() -> None:
    small = MAC.model_copy(update={"memory": MAC.memory.model_copy(update={"available_bytes": 6_400_000_000})})
    short = plan(small).plan
    assert short.context_length < 32768
    assert any(f"context {short.context_length}" in warning for warning in short.warnings)


def test_a_context_that_was_asked_for_is_never_shortened() -> None:
    refused = plan(MAC, context_length=2_000_000)
    assert refused.plan.action is PlanAction.REFUSE
    assert refused.plan.problem is not None and refused.plan.problem.code == "does-not-fit"
    assert refused.plan.fit_lines and refused.prepare is None


def test_the_longest_context_that_fits_is_told_whatever_was_asked_for() -> None:
    assert plan(context_length=4096).plan.longest_context == 32768
    small = MAC.model_copy(update={"memory": MAC.memory.model_copy(update={"available_bytes": 6_400_000_000})})
    short = plan(small).plan
    asked = plan(small, backend=short.backend, quantization=short.quantization, context_length=4096).plan
    assert 4096 < asked.longest_context == short.longest_context < 32768
    exactly = plan(small, backend=short.backend, quantization=short.quantization, context_length=asked.longest_context)
    longer = plan(
        small, backend=short.backend, quantization=short.quantization, context_length=asked.longest_context + 256
    )
    assert (exactly.plan.fit, longer.plan.fit) == (FitVerdict.FITS, FitVerdict.REFUSED)


def test_a_context_beyond_what_the_model_was_made_for_is_said() -> None:
    longest = MODEL.max_context
    assert longest is not None
    longer = plan(context_length=longest + 1).plan
    said = f"context {longest + 1:,} is longer than the {longest:,} tokens that the model was made for"
    assert longer.action is PlanAction.START and any(said in warning for warning in longer.warnings)
    assert not any("made for" in warning for warning in plan(context_length=longest).plan.warnings)


def test_wrong_quantization_lists_those_that_exist() -> None:
    failed = plan(quantization="Q7").plan
    assert failed.action is PlanAction.FAIL and failed.problem is not None
    assert failed.problem.code == "unknown-quantization"
    assert failed.problem.remedy == "it has: Q4, Q8, Q2, 4bit"
    on_backend = plan(quantization="4bit", backend="llama.cpp").plan
    assert on_backend.problem is not None and on_backend.problem.remedy == "it has: Q4, Q8, Q2"


def test_unknown_backend_lists_those_that_exist() -> None:
    failed = plan(backend="tensorrt").plan
    assert failed.problem is not None and "llama.cpp" in failed.problem.remedy


def test_mlx_on_linux_is_planned_against_ram() -> None:
    cpu = plan(backend="mlx-lm").plan
    assert cpu.memory_kind == "RAM" and cpu.service is not None and cpu.service.gpu_indices == ()


# ---- keep and replace


@pytest.mark.parametrize("facts", [GPU_HOST, MAC, CPU_HOST])
def test_the_same_again_changes_nothing(facts: HostFacts) -> None:
    first = plan(facts)
    assert first.plan.action is PlanAction.START
    again = plan(facts, (running(first),))
    assert again.plan.action is PlanAction.KEEP
    assert "already runs exactly so" in again.plan.reason
    assert again.prepare is None and again.smoke_test is None and again.plan.commands == ()


def test_the_same_again_on_memory_that_the_model_itself_fills() -> None:
    status = running(plan())
    full = with_gpu(memory_free_bytes=1 * GB, processes=(GpuProcess(pid=1, memory_bytes=11 * GB, ours=True),))
    assert plan(full, (status,)).plan.action is PlanAction.KEEP


def test_a_stranger_beside_a_running_model_does_not_touch_it() -> None:
    status = running(plan())
    shared = with_gpu(processes=(GpuProcess(pid=7, memory_bytes=GB, user="alice"),))
    assert plan(shared, (status,)).plan.action is PlanAction.KEEP


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"context_length": 8192}, "context_length 32768 -> 8192"),
        ({"quantization": "Q4"}, "quantization Q8 -> Q4"),
        ({"port": 9000}, "port 8080 -> 9000"),
        ({"max_parallel": 2}, "max_parallel 0 -> 2"),
        ({"bind_address": "0.0.0.0", "api_key": "env:KEY"}, "bind_address 127.0.0.1 -> 0.0.0.0, API key added"),
    ],
)
def test_other_wishes_replace(wishes: dict[str, Any], said: str) -> None:
    replaced = plan(GPU_HOST, (running(plan()),), **wishes).plan
    assert replaced.action is PlanAction.REPLACE
    assert said in replaced.reason


def test_a_new_commit_on_the_hub_replaces() -> None:
    moved = tuple(item.model_copy(update={"commit": "d" * 40}) for item in MODEL.artifacts)
    again = plan(GPU_HOST, (running(plan()),), model=MODEL.model_copy(update={"artifacts": moved})).plan
    assert again.action is PlanAction.REPLACE


def test_memory_of_the_replaced_service_counts_as_free() -> None:
    status = running(plan())
    full = with_gpu(memory_free_bytes=14 * GB)
    assert plan(full, (status,), context_length=16384, quantization="Q8").plan.fit is FitVerdict.FITS


@pytest.mark.parametrize("state", [ServiceState.FAILED, ServiceState.STOPPED])
def test_what_has_ended_is_started_again(state: ServiceState) -> None:
    desired = DesiredState.STOPPED if state is ServiceState.STOPPED else DesiredState.RUNNING
    again = plan(GPU_HOST, (running(plan(), state=state, desired=desired),))
    assert again.plan.action in (PlanAction.START, PlanAction.REPLACE)
    assert again.prepare is not None


# ---- neighbours and memory


def test_a_foreign_process_means_busy() -> None:
    stranger = GpuProcess(
        pid=4711,
        memory_bytes=18_200_000_000,
        user="alice",
        command="python",
        started_unix_ms=GPU_HOST.taken_unix_ms + 3_600_000,
    )
    busy = plan(with_gpu(processes=(stranger,)))
    assert busy.plan.action is PlanAction.REFUSE
    assert busy.plan.problem is not None and busy.plan.problem.code == "busy"
    assert busy.plan.problem.message == "busy: alice, python, 18.2 GB since 01:00 UTC"
    assert busy.prepare is None


def test_ours_and_the_desktop_are_no_strangers() -> None:
    processes = (
        GpuProcess(pid=1, memory_bytes=GB, user="lab", command="llama-server", ours=True),
        GpuProcess(pid=2, memory_bytes=40_000_000, user="root", command="Xorg", compute=False),
    )
    assert plan(with_gpu(processes=processes)).plan.action is PlanAction.START


def test_a_busy_gpu_that_is_not_ours_to_use_does_not_matter() -> None:
    second = GPU_HOST.gpus[0].model_copy(update={"index": 1, "uuid": "GPU-second"})
    busy = GPU_HOST.gpus[0].model_copy(update={"processes": (GpuProcess(pid=9, memory_bytes=GB, user="bob"),)})
    facts = GPU_HOST.model_copy(update={"gpus": (busy, second)})
    refused = plan(facts).plan
    assert refused.problem is not None and "CUDA_VISIBLE_DEVICES=1" in refused.problem.remedy
    for named in ("1", "GPU-second"):
        host = Host(name="gpu1", address="gpu1", environment={"CUDA_VISIBLE_DEVICES": named})
        free = plan(facts, host=host).plan
        assert free.action is PlanAction.START and free.service is not None
        assert free.service.gpu_indices == (1,)
        assert {v.name: v.value for v in free.service.environment} == {"CUDA_VISIBLE_DEVICES": named}


def test_an_index_means_the_same_card_to_cuda_on_a_host_with_different_cards() -> None:
    mixed = (GPU_HOST.gpus[0], GPU_HOST.gpus[0].model_copy(update={"index": 1, "uuid": "GPU-2", "name": "RTX 3060"}))
    facts = GPU_HOST.model_copy(update={"gpus": mixed})
    host = Host(name="gpu1", address="gpu1", environment={"CUDA_VISIBLE_DEVICES": "0"})
    service = plan(facts, host=host).plan.service
    assert service is not None
    assert service.gpu_indices == (0,)
    assert {v.name: v.value for v in service.environment} == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"
    }  # fmt: skip


def test_no_visible_gpu_builds_for_the_cpu() -> None:
    host = Host(name="gpu1", address="gpu1", environment={"CUDA_VISIBLE_DEVICES": ""})
    deployment = plan(host=host)
    assert deployment.prepare is not None
    build = next(step.cmake_build for step in deployment.prepare.steps if step.cmake_build)
    assert "-DGGML_CUDA=ON" not in build.options
    assert deployment.plan.memory_kind == "RAM"


def test_what_was_promised_to_others_is_not_free() -> None:
    others = (other_service(8081, 20 * GB, (0,)),)
    assert plan(GPU_HOST, others).plan.free_bytes == 25386024960 - 20 * GB
    elsewhere = (other_service(8081, 20 * GB, (3,)),)
    assert plan(GPU_HOST, elsewhere).plan.free_bytes == 25_100_000_000


def test_refused_shows_its_arithmetic() -> None:
    poor = MAC.model_copy(update={"memory": MAC.memory.model_copy(update={"available_bytes": 2 * GB})})
    poor = poor.model_copy(update={"apple": AppleFacts(metal_working_set_bytes=2 * GB)})
    refused = plan(poor).plan
    assert refused.action is PlanAction.REFUSE and refused.fit is FitVerdict.REFUSED
    assert {line.what for line in refused.fit_lines} >= {"weights", "KV cache", "reserve"}
    assert refused.problem is not None and refused.problem.remedy


def test_a_full_disk_is_seen_before_any_download() -> None:
    disks = tuple(disk.model_copy(update={"free_bytes": GB}) for disk in GPU_HOST.disks)
    full = GPU_HOST.model_copy(update={"disks": disks})
    refused = plan(full).plan
    assert refused.action is PlanAction.REFUSE
    assert refused.problem is not None and refused.problem.code == "disk-full"


def test_files_in_the_cache_are_not_fetched_again() -> None:
    held = Artifact(repository="acme/m-gguf", commit="c" * 40, files=("m-Q8.gguf",))
    assert plan().plan.download_bytes == 9 * GB
    assert plan(cached=(held,)).plan.download_bytes == 0


# ---- ports


def test_ports() -> None:
    taken = (other_service(8080), other_service(8081))
    assert plan().plan.port == 8080
    assert plan(GPU_HOST, taken).plan.port == 8082
    assert plan(port=9000).plan.port == 9000
    refused = plan(GPU_HOST, taken, port=8081).plan
    assert refused.action is PlanAction.REFUSE
    assert refused.problem is not None and "other-8081" in refused.problem.message


def test_ports_stay_within_limits() -> None:
    limits = Limits(ports=PortRange(first=9100, last=9101))
    host = Host(name="gpu1", address="gpu1", limits=limits)
    assert plan(host=host).plan.port == 9100
    assert plan(host=host, port=8080).plan.action is PlanAction.REFUSE
    assert plan(GPU_HOST, (other_service(9100), other_service(9101)), host=host).plan.action is PlanAction.REFUSE


def test_services_stay_within_limits() -> None:
    host = Host(name="gpu1", address="gpu1", limits=Limits(max_services=1))
    assert plan(host=host).plan.action is PlanAction.START
    assert plan(GPU_HOST, (other_service(9100),), host=host).plan.action is PlanAction.REFUSE


# ---- jobs


def test_job_ids_are_derived_from_machine_and_work() -> None:
    first, second = plan(), plan()
    assert first == second
    assert first.prepare is not None and first.smoke_test is not None
    others = [
        plan(GPU_HOST.model_copy(update={"machine_id": "another"})),
        plan(context_length=8192),
        plan(quantization="Q4"),
        plan(port=9000),
        plan(host=Host(name="gpu1", address="gpu1", environment={"HF_ENDPOINT": "https://mirror.example"})),
    ]
    ids = [first.prepare.job_id, *(other.prepare.job_id for other in others if other.prepare)]
    assert len(set(ids)) == 6
    assert first.smoke_test.job_id != first.prepare.job_id


def test_the_same_job_id_always_means_the_same_job() -> None:
    """An agent refuses a known id with another spec: what changes by the minute must not be in a job."""
    held = Artifact(repository="acme/m-gguf", commit="c" * 40, files=("m-Q8.gguf",))
    assert plan().prepare == plan(with_gpu(memory_free_bytes=24 * GB), cached=(held,)).prepare


def test_a_job_that_ended_gets_the_next_id() -> None:
    job = plan().prepare
    assert job is not None
    assert retried(job, ()) == job
    assert retried(job, (job.job_id,)).job_id == f"{job.job_id}-2"
    assert retried(job, (job.job_id, f"{job.job_id}-2")).job_id == f"{job.job_id}-3"


def test_hub_settings_of_the_host_reach_the_download_and_not_the_server() -> None:
    environment = {
        "HF_ENDPOINT": "https://mirror.example",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN_PATH": "/secret/token",
        "OMP_NUM_THREADS": "8",
    }
    deployment = plan(host=Host(name="gpu1", address="gpu1", environment=environment))
    assert deployment.prepare is not None and deployment.plan.service is not None
    download = next(step.hub_download for step in deployment.prepare.steps if step.hub_download)
    assert (download.endpoint, download.offline) == ("https://mirror.example", True)
    assert download.token_file == "/secret/token"
    assert {v.name for v in deployment.plan.service.environment} == {"HF_HUB_OFFLINE", "OMP_NUM_THREADS"}


def test_the_smoke_test_asks_where_the_server_listens() -> None:
    for address, url in (("", "http://127.0.0.1:8080/v1"), ("0.0.0.0", "http://127.0.0.1:8080/v1")):
        smoke = plan(bind_address=address, api_key="env:KEY").smoke_test
        assert smoke is not None and smoke.steps[0].chat_probe is not None
        assert smoke.steps[0].chat_probe.base_url == url
    elsewhere = plan(bind_address="192.0.2.7", api_key="env:KEY")
    assert elsewhere.smoke_test is None
    assert any("no smoke test" in warning for warning in elsewhere.plan.warnings)


# ---- engines and paths


def engine(version: str, *, managed: bool = False, key: str = "", path: str = "/opt/bin/llama-server") -> EngineFacts:
    return EngineFacts(backend="llama.cpp", version=version, path=path, managed=managed, install_key=key)


def test_an_install_that_is_there_is_not_made_again() -> None:
    first = plan()
    assert first.plan.install_needed and first.plan.service is not None
    key = first.plan.service.tool.install_key
    there = GPU_HOST.model_copy(update={"engines": (engine("b8396", managed=True, key=key),)})
    assert not plan(there).plan.install_needed


def test_binaries_of_the_pinned_version_are_adopted() -> None:
    there = GPU_HOST.model_copy(update={"engines": (engine("b8396"),)})
    deployment = plan(there)
    assert deployment.prepare is not None
    adopt = deployment.prepare.steps[0].adopt_engine
    assert adopt is not None and adopt.path == "/opt/bin"


def test_without_a_compiler_what_is_there_is_used_and_said() -> None:
    bare = GPU_HOST.model_copy(update={"tools": (ToolFacts(name="git", path="/usr/bin/git"),)})
    failed = plan(bare).plan
    assert failed.action is PlanAction.FAIL
    assert failed.problem is not None and "cmake and nvcc not found" in failed.problem.message
    used = plan(bare.model_copy(update={"engines": (engine("b9999"),)})).plan
    assert used.action is PlanAction.START and used.backend_version == "b9999"
    assert any("cmake" in warning for warning in used.warnings)


def test_engine_path_twice_is_one_install() -> None:
    first = plan(engine_path="/opt/llama/bin")
    assert first.plan.service is not None
    again = plan(GPU_HOST, (running(first),), engine_path="/opt/llama/bin/llama-server")
    assert again.plan.action is PlanAction.KEEP


def test_a_running_model_keeps_its_engine_until_another_is_asked_for() -> None:
    first = plan(engine_path="/opt/llama/bin")
    assert first.plan.service is not None
    key = first.plan.service.tool.install_key
    there = GPU_HOST.model_copy(update={"engines": (engine("b9999", managed=True, key=key),)})
    again = plan(there, (running(first),))
    assert again.plan.action is PlanAction.KEEP
    assert any("--backend-version" in warning for warning in again.plan.warnings)
    moved = plan(there, (running(first),), backend_version="b8396").plan
    assert moved.action is PlanAction.REPLACE and moved.install_needed
    other_context = plan(there, (running(first),), context_length=4096).plan
    assert other_context.action is PlanAction.REPLACE and not other_context.install_needed


def test_a_path_on_the_hosts() -> None:
    local = ModelArtifact(format="gguf", quantization="Q4_K_M", local_path="/models/x.gguf")
    deployment = plan(model=ResolvedModel(name="x", artifacts=(local,)))
    assert deployment.plan.action is PlanAction.START and deployment.prepare is not None
    assert len(deployment.prepare.steps) > 1, "the engine is installed as well"
    assert deployment.prepare.steps[0].verify_file is not None
    assert deployment.plan.service is not None and "/models/x.gguf" in deployment.plan.service.arguments
    assert any("not known" in warning for warning in deployment.plan.warnings)


def test_a_path_in_the_model_folder() -> None:
    local = ModelArtifact(format="gguf", local_path="./sub/x.gguf", weights_bytes=GB)
    model = ResolvedModel(name="x", artifacts=(local,))
    failed = plan(model=model).plan
    assert failed.action is PlanAction.FAIL and failed.problem is not None and "model_dir" in failed.problem.remedy
    layout = GPU_HOST.layout.model_copy(update={"model_dir": "/data/models"})
    there = plan(GPU_HOST.model_copy(update={"layout": layout}), model=model).plan
    assert there.service is not None and "/data/models/sub/x.gguf" in there.service.arguments


def test_a_host_that_is_down_has_a_plan_too() -> None:
    refused = plan(quantization="Q7").plan.problem
    assert refused is not None
    down = unreachable_plan("gpu9", refused)
    assert (down.plan.host, down.plan.action) == ("gpu9", PlanAction.FAIL)
