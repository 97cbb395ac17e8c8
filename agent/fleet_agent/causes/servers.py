"""What servers print when they cannot start or go on.

Each entry is held by a captured text in tests/agent/causes/servers/, or by a line of the engine's source that is cited
there. The first that matches wins: the specific before the general.
"""

from fleet_agent.causes.recognise import cause
from fleet_agent.causes.shared import SHARED_CAUSES

SERVER_CAUSES = (
    cause(
        r"couldn't bind HTTP server socket|address already in use(?!\. Retrying)|Errno (48|98)\b|"
        r"Port is already in use",
        "port-taken",
        "its port is in use",
        "free the port, or deploy with another one: --port N",
    ),
    cause(
        r"CUDA driver version is insufficient|forward compatibility was attempted|"
        r"driver on your system is too old|no kernel image is available|unsupported toolchain|"
        r"is not compatible with the current PyTorch installation",
        "cuda-mismatch",
        "the GPU, its driver and the CUDA runtime of this build do not fit together",
        "update the NVIDIA driver, or deploy again so that the backend is built for this host's CUDA version",
    ),
    cause(
        r"Torch not compiled with CUDA enabled|Failed to infer device type",
        "built-without-cuda",
        "this install computes on the CPU only, or finds no GPU",
        "check `fleet hosts` for the GPU, then remove the install (`fleet backends remove`) and deploy again",
        permanent=True,
    ),
    cause(
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        "memory-fraction-too-small",
        "the part of the GPU that it may take does not hold the model and its KV cache",
        "deploy with a larger --memory-fraction, a smaller --context, or on a larger GPU",
        permanent=True,
    ),
    cause(
        r"which is larger than the available KV cache|larger than the maximum number of tokens that can be stored",
        "context-too-large",
        "the KV cache of the asked context does not fit into the memory that is left for it",
        "deploy with a smaller --context",
        permanent=True,
    ),
    cause(
        r"cudaMalloc failed: out of memory|CUDA out of memory|CUDA error: out of memory|"
        r"kIOGPUCommandBufferCallbackErrorOutOfMemory|"
        r"ggml_aligned_malloc: insufficient memory|failed to allocate \w+ buffer of size|"
        r"\[metal::malloc\]|std::bad_alloc|MemoryError|No available memory for the cache blocks|"
        r"Free memory on device .* is less than desired",
        "out-of-memory",
        "it did not get the memory that it needs",
        "deploy with a smaller --context or quantization, or free memory on the device (`fleet ps`, `fleet hosts`)",
    ),
    *SHARED_CAUSES,
    cause(
        r"failed to open GGUF file .*\(No such file or directory\)|"
        r"No such file or directory: .*(safetensors|config\.json)|"
        r"FileNotFoundError|Repo id must be in the form .*'/",
        "model-missing",
        "a model file is not there",
        "deploy again: it fetches what is missing",
    ),
    cause(
        r"data is not within the file bounds|failed to read key-value pairs|failed to read tensor (info|data)|"
        r"invalid magic characters|incomplete metadata, file not fully covered|header too (large|small)",
        "model-damaged",
        "the model file is cut off or damaged",
        "remove the file and deploy again: it is fetched and verified anew",
        permanent=True,
    ),
    cause(
        r"unknown model architecture: '?(?P<detail>[^'\n]+)|Model type (?P<detail2>\S+) not supported|"
        r"has model type `(?P<detail3>[^`]+)` but Transformers does not recognize|"
        r"Model architectures? (?P<detail4>.*?) (is|are) not supported",
        "unknown-architecture",
        "this version of the backend does not know the model's architecture",
        "deploy with a newer --backend-version, or with another backend",
        permanent=True,
    ),
    # lmstudio-ai/lms, src/subcommands/load.ts and server.ts
    cause(
        r"No model found (with path being exactly|that matches (model key|path)) \"(?P<detail>[^\"\n]+)",
        "model-missing",
        "LM Studio has no such model in its store",
        "deploy again: it is fetched or linked anew; `lms ls` on the host shows what is there",
    ),
    cause(
        r"resource guardrails",
        "guardrails",
        "LM Studio's resource guardrails do not let the model be loaded",
        "deploy with a smaller --context or quantization, or loosen the guardrails in LM Studio's settings",
        permanent=True,
    ),
    cause(
        r"Failed to verify the server is running",
        "port-taken",
        "LM Studio's server did not come up on its port",
        "free the port, or deploy with another one: --port N",
    ),
    cause(
        r"Failed to (start|launch) LM Studio",
        "daemon-not-running",
        "LM Studio's daemon does not run, and lms could not start it",
        "log in on the host as the agent's user and run `lms daemon up` once by hand: it may ask or say something",
    ),
    cause(
        r"error: invalid argument: (?P<detail>\S+)|error: unrecognized arguments: (?P<detail2>.+)",
        "unknown-argument",
        "it does not know one of its arguments",
        "the backend's version and the plan do not fit: deploy with the version that the plan was made for",
        permanent=True,
    ),
    cause(
        r"mlx_lm\.server generation thread died: (?P<detail>.+)",
        "model-not-loaded",
        "it could not load its model",
        "see its log; deploy again, or with another backend",
    ),
    cause(
        r"No module named '?(?P<detail>[\w.]+)",
        "broken-install",
        "the backend's installation is incomplete",
        "remove it (`fleet backends remove`), then deploy again",
    ),
)
