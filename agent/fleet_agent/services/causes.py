"""Why a server ended, read from what it printed: a table of the texts that engines really write.

Each entry is held by a captured text in tests/agent/services/texts/ or by the engine's source.
"""

import re
import signal
from dataclasses import dataclass, replace

from fleet_agent.services.model import Problem


@dataclass(frozen=True)
class Cause:
    """permanent: the same start will end the same way, so it is not tried again before the service was ever ready."""

    pattern: re.Pattern[str]
    code: str
    message: str
    remedy: str
    permanent: bool = False


def _cause(pattern: str, code: str, message: str, remedy: str, permanent: bool = False) -> Cause:
    return Cause(re.compile(pattern, re.IGNORECASE), code, message, remedy, permanent)


_LAST_WORDS_LINES = 12

# The first that matches wins: the specific before the general.
CAUSES = (
    _cause(
        r"couldn't bind HTTP server socket|address already in use|Errno (48|98)\b",
        "port-taken",
        "its port is in use",
        "free the port, or deploy with another one: --port N",
    ),
    _cause(
        r"CUDA driver version is insufficient|forward compatibility was attempted|"
        r"driver on your system is too old|no kernel image is available|unsupported toolchain",
        "cuda-mismatch",
        "the GPU driver and the CUDA runtime of this build do not fit together",
        "update the NVIDIA driver, or deploy again so that the backend is built for this host's CUDA version",
    ),
    _cause(
        r"cudaMalloc failed: out of memory|CUDA out of memory|CUDA error: out of memory|"
        r"kIOGPUCommandBufferCallbackErrorOutOfMemory|"
        r"ggml_aligned_malloc: insufficient memory|failed to allocate \w+ buffer of size|"
        r"\[metal::malloc\]|std::bad_alloc|MemoryError|No available memory for the cache blocks|"
        r"Free memory on device .* is less than desired",
        "out-of-memory",
        "it did not get the memory that it needs",
        "deploy with a smaller --context or quantization, or free memory on the device (`fleet ps`, `fleet hosts`)",
    ),
    _cause(
        r"failed to open GGUF file .*\(No such file or directory\)|"
        r"No such file or directory: .*(safetensors|config\.json)|"
        r"FileNotFoundError|Repo id must be in the form .*'/",
        "model-missing",
        "a model file is not there",
        "deploy again: it fetches what is missing",
    ),
    _cause(
        r"data is not within the file bounds|failed to read key-value pairs|failed to read tensor (info|data)|"
        r"invalid magic characters|incomplete metadata, file not fully covered|header too (large|small)",
        "model-damaged",
        "the model file is cut off or damaged",
        "remove the file and deploy again: it is fetched and verified anew",
        permanent=True,
    ),
    _cause(
        r"unknown model architecture: '?(?P<detail>[^'\n]+)|Model type (?P<detail2>\S+) not supported|"
        r"Model architectures? .* (is|are) not supported",
        "unknown-architecture",
        "this version of the backend does not know the model's architecture",
        "deploy with a newer --backend-version, or with another backend",
        permanent=True,
    ),
    _cause(
        r"error: invalid argument: (?P<detail>\S+)|error: unrecognized arguments: (?P<detail2>.+)",
        "unknown-argument",
        "it does not know one of its arguments",
        "the backend's version and the plan do not fit: deploy with the version that the plan was made for",
        permanent=True,
    ),
    _cause(
        r"mlx_lm\.server generation thread died: (?P<detail>.+)",
        "model-not-loaded",
        "it could not load its model",
        "see its log; deploy again, or with another backend",
    ),
    _cause(
        r"No module named '?(?P<detail>[\w.]+)",
        "broken-install",
        "the backend's installation is incomplete",
        "remove its folder of engines/ on the host (`fleet hosts --json` names it), then deploy again",
    ),
)


# A server whose front still answers /health although nothing is behind it.
_DEAD_BEHIND_FRONT = re.compile(r"mlx_lm\.server generation thread died")


def hopeless(text: str) -> Problem | None:
    """Why a server that answers can serve nothing all the same; None where its log says no such thing."""
    known = recognise(text)
    if known is not None and (known[1] or _DEAD_BEHIND_FRONT.search(text)):
        return known[0]
    return None


def recognise(text: str) -> tuple[Problem, bool] | None:
    """The problem that `text` (a log's tail) tells of, and whether it is permanent; None where nothing is known."""
    for cause in CAUSES:
        found = cause.pattern.search(text)
        if found:
            detail = next((value for value in found.groupdict().values() if value), "")
            message = f"{cause.message}: {detail.strip()}" if detail else cause.message
            return Problem(cause.code, message, cause.remedy), cause.permanent
    return None


def exit_problem(service: str, code: int | None, text: str) -> Problem:
    """How a server ended and why, from its exit code (None: not known) and its log since the start."""
    how = _describe_exit(code)
    known = recognise(text)
    if known is not None:
        return replace(known[0], message=f"{how}: {known[0].message}")
    said = "\n".join([line for line in text.splitlines() if not line.startswith("[fleet] ")][-_LAST_WORDS_LINES:])
    message = f"{how}; its last words:\n{said}" if said else f"{how} and said nothing"
    return Problem("exited", message, f"read its log: fleet logs {service}")


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "it ended"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (killed from outside, or by the kernel for want of memory)" if -code == signal.SIGKILL else ""
    return f"it was ended by {name}{hint}"
