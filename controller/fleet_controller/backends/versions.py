"""The versions that `fleet` installs when nobody asks for another one, and the Pythons that each version runs on:
the only place to change them.
"""

from fleet_controller.backends.python_range import PythonRange

# The build of the lab notes' tables ("build: 054d8b0f2 (8396)"), so that results stay comparable with them.
LLAMA_CPP_REPOSITORY = "https://github.com/ggml-org/llama.cpp"
LLAMA_CPP_VERSION = "b8396"

# Served and benched on Linux and measured in facts/backends.md; the notes' table was made with mlx-lm 0.31.1,
# which `--backend-version 0.31.1` still gives.
MLX_LM_VERSION = "0.32.2"
MLX_VERSION = "0.32.4"

# Both computed on an NVIDIA GPU with full-size models (facts/nvidia_gpu.md). A model's catalog entry may ask for
# another one; Qwen3.5-4B on SGLang is from its main branch.
VLLM_VERSION = "0.26.0"
VLLM_WHEELS = "https://wheels.vllm.ai"
SGLANG_REPOSITORY = "https://github.com/sgl-project/sglang.git"
SGLANG_VERSION = "0.5.16"

# By backend: from which version on which Pythons, oldest first. From the packages' Requires-Python and the ABI tags of
# their wheels as the registry has them (SGLang 0.5.8 to 0.5.10 name no upper bound: what came after them stops at
# 3.13). What is no release (a branch, a commit, a nightly) counts as the newest.
PYTHON_RANGES: dict[str, tuple[tuple[tuple[int, ...], PythonRange], ...]] = {
    "mlx-lm": (
        ((0,), PythonRange(lowest=(3, 10), highest=(3, 14))),
        ((0, 32), PythonRange(lowest=(3, 11), highest=(3, 14))),
    ),
    "vllm": (
        ((0,), PythonRange(lowest=(3, 10), highest=(3, 12))),
        ((0, 11, 1), PythonRange(lowest=(3, 10), highest=(3, 13))),
        ((0, 20), PythonRange(lowest=(3, 10), highest=(3, 14))),
        ((0, 32), PythonRange(lowest=(3, 11), highest=(3, 14))),
    ),
    "sglang": (
        ((0,), PythonRange(lowest=(3, 10), highest=(3, 13))),
        ((0, 5, 23), PythonRange(lowest=(3, 11), highest=(3, 13))),
    ),
}
