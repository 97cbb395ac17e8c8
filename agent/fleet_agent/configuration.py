"""agent.json, and the two allowlists: environment variables and tools.

The allowlists narrow mistakes, not trust: a step installs packages, so whoever is the controller can run code
as this user anyway.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fleet_agent.problem import ProblemError

if TYPE_CHECKING:
    from fleet_agent.layout import Layout

ALLOWED_ENVIRONMENT = frozenset(
    {
        "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN_PATH", "HF_HUB_DISABLE_XET",
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
        "UV_PYTHON_INSTALL_MIRROR", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_FIND_LINKS",
    }
)  # fmt: skip
ALLOWED_ENVIRONMENT_PREFIXES = ("LLAMA_", "GGML_", "MLX_", "VLLM_", "SGLANG_")

# Taken over from the agent's own environment, where set: what a login on this host has, and where the host's
# administrator said how to reach the network. Nothing that changes how a model server computes is among them.
INHERITED_ENVIRONMENT = (
    "HOME", "PATH", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "XDG_CACHE_HOME",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "UV_PYTHON_INSTALL_MIRROR", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_FIND_LINKS",
)  # fmt: skip

ALLOWED_TOOLS = ("git", "cmake", "ninja", "make", "uv", "lms", "brew", "nvcc", "python3")

# A service manager's PATH is short: where these tools live although a login shell's profile names the folder.
EXTRA_TOOL_FOLDERS = (
    "~/.local/bin", "~/.lmstudio/bin", "/usr/local/bin", "/opt/homebrew/bin", "/usr/local/cuda/bin", "/usr/bin", "/bin",
)  # fmt: skip

INSTALL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}\Z")
_VENV_PYTHON = re.compile(r"venv/bin/python(3(\.\d+)?)?\Z")


class ConfigurationError(ProblemError):
    """agent.json cannot be used."""

    def __init__(self, message: str, remedy: str = "correct the file, or run `fleet up` for this host again") -> None:
        super().__init__("bad-configuration", message, remedy)


class EnvironmentNotAllowedError(ProblemError):
    """An environment variable outside the allowlist, or a value that no environment can hold."""

    def __init__(self, name: str, why: str = "is not in the agent's allowlist") -> None:
        remedy = "allowed are: " + ", ".join((*sorted(ALLOWED_ENVIRONMENT), *(f"{p}*" for p in _PREFIXES)))
        super().__init__("environment-not-allowed", f"environment variable {name!r} {why}", remedy, "INVALID_ARGUMENT")


_PREFIXES = ALLOWED_ENVIRONMENT_PREFIXES


class ToolError(ProblemError):
    """A tool that is not allowed, not there, or leads out of its install."""


@dataclass(frozen=True)
class AgentConfiguration:
    """agent.json. `limits` are numbers by name; what a name means is said where it is read."""

    environment: Mapping[str, str] = field(default_factory=dict)
    model_dir: Path | None = None
    tools: Mapping[str, Path] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


# LLAMA_API_KEY, VLLM_API_KEY, LLAMA_ARG_HF_TOKEN, ...: what is set here is shown, logged and kept.
_FOR_SECRETS = re.compile(r"[A-Z0-9_]*_(API_KEY|KEY|TOKEN|SECRET|PASSWORD)\Z")


def allowed_environment(name: str) -> bool:
    """Whether a step or a service may set this variable; those for secrets are filled from this host's own."""
    if _FOR_SECRETS.match(name):
        return False
    if name in ALLOWED_ENVIRONMENT:
        return True
    prefixed = any(name.startswith(prefix) and name != prefix for prefix in ALLOWED_ENVIRONMENT_PREFIXES)
    return prefixed and re.fullmatch(r"[A-Z0-9_]+", name) is not None


def check_environment(variables: Mapping[str, str]) -> None:
    """Raises EnvironmentNotAllowedError for the first variable that may not be set."""
    for name, value in variables.items():
        if not allowed_environment(name):
            raise EnvironmentNotAllowedError(name)
        if "\0" in value or "\n" in value:
            raise EnvironmentNotAllowedError(name, "holds a line end or a NUL")


def read_configuration(path: Path) -> AgentConfiguration:
    """The configuration at `path`; a file that is not there is an empty one. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return AgentConfiguration()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    return parse_configuration(document, str(path))


def parse_configuration(document: Any, where: str) -> AgentConfiguration:
    """The configuration of a JSON document; `where` names it in messages. Raises ConfigurationError."""
    if not isinstance(document, dict):
        raise ConfigurationError(f"{where}: expected an object, found {type(document).__name__}")
    unknown = sorted(set(document) - {"environment", "model_dir", "tools", "limits"})
    if unknown:
        raise ConfigurationError(
            f"{where}: unknown key {unknown[0]!r}; known are environment, model_dir, tools, limits"
        )
    environment = _texts(document.get("environment", {}), f"{where}: environment")
    for name, value in environment.items():
        try:
            check_environment({name: value})
        except EnvironmentNotAllowedError as error:
            raise ConfigurationError(f"{where}: {error.message}", error.remedy) from error
    tools = _texts(document.get("tools", {}), f"{where}: tools")
    foreign = sorted(set(tools) - set(ALLOWED_TOOLS))
    if foreign:
        raise ConfigurationError(f"{where}: tools.{foreign[0]} is not one of {', '.join(ALLOWED_TOOLS)}")
    limits = document.get("limits", {})
    numbers = isinstance(limits, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in limits.values()
    )
    if not numbers:
        raise ConfigurationError(f"{where}: limits: expected an object of numbers")
    model_dir = document.get("model_dir") or None
    if model_dir is not None and not isinstance(model_dir, str):
        raise ConfigurationError(f"{where}: model_dir: expected a path")
    return AgentConfiguration(
        environment=environment,
        model_dir=_absolute(model_dir, f"{where}: model_dir") if model_dir else None,
        tools={name: _absolute(path, f"{where}: tools.{name}") for name, path in tools.items()},
        limits={str(name): float(value) for name, value in limits.items()},
    )


def _texts(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ConfigurationError(f"{where}: expected an object whose values are strings")
    return {str(name): text for name, text in value.items()}


def _absolute(path: str, where: str) -> Path:
    expanded = Path(path).expanduser()
    if not expanded.is_absolute():
        raise ConfigurationError(f"{where}: {path!r} is not an absolute path")
    return expanded


def tool_folders(env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Where host tools are looked for, in order: PATH, the usual folders outside it, the agent's own venv."""
    given = (os.environ if env is None else env).get("PATH", "").split(os.pathsep)
    extra = [str(Path(folder).expanduser()) for folder in EXTRA_TOOL_FOLDERS]
    own = [str(Path(sys.prefix) / "bin")]
    return _unique(folder for folder in (*given, *extra, *own) if folder.startswith("/"))


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def child_environment(
    configuration: AgentConfiguration, extra: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a process that the agent starts: inherited, then agent.json, then `extra`.

    Raises EnvironmentNotAllowedError where agent.json or `extra` sets a variable outside the allowlist.
    """
    own = os.environ if env is None else env
    environment = {name: own[name] for name in INHERITED_ENVIRONMENT if own.get(name)}
    environment.setdefault("HOME", str(Path.home()))
    environment.setdefault("LANG", "C.UTF-8")
    environment["PATH"] = os.pathsep.join(tool_folders(own))
    for variables in (configuration.environment, extra or {}):
        check_environment(variables)
        environment.update(variables)
    return environment


def resolve_tool(install_key: str, name: str, layout: "Layout", configuration: AgentConfiguration) -> Path:
    """The program that a ToolRef names: in an install of ours, or, without a key, from the host's allowlist.

    The path is returned as named, not resolved: a venv's python is only itself under its own name.
    Raises ToolError.
    """
    if install_key:
        return _installed_tool(install_key, name, layout)
    if name not in ALLOWED_TOOLS:
        remedy = f"allowed are: {', '.join(ALLOWED_TOOLS)}"
        raise ToolError("tool-not-allowed", f"{name!r} is no tool of the allowlist", remedy, "INVALID_ARGUMENT")
    found = find_host_tool(name, configuration)
    if found is None:
        raise ToolError(
            "tool-missing", f"{name} is not on this host",
            f"install {name}, or name its path in hosts.yaml under `tools` and run `fleet up` again",
        )  # fmt: skip
    return found


def find_host_tool(name: str, configuration: AgentConfiguration) -> Path | None:
    """A host tool's path: the one in agent.json, else the first found in tool_folders(); None where it is not there."""
    named = configuration.tools.get(name)
    if named is not None:
        return named if os.access(named, os.X_OK) and named.is_file() else None
    found = shutil.which(name, path=os.pathsep.join(tool_folders()))
    return Path(found) if found else None


def _installed_tool(install_key: str, name: str, layout: "Layout") -> Path:
    parts = PurePosixPath(name).parts
    if not INSTALL_KEY.match(install_key) or not parts or name.startswith("/") or ".." in parts:
        raise ToolError(
            "tool-not-allowed", f"tool {name!r} of install {install_key!r} is not a path inside an install", "",
            "INVALID_ARGUMENT",
        )  # fmt: skip
    install = layout.engines_dir / install_key
    path = install.joinpath(*parts)
    if not (path.is_file() and os.access(path, os.X_OK)):
        what = (
            f"{name} is missing from install {install_key}" if install.is_dir() else f"{install_key} is not installed"
        )
        raise ToolError("tool-missing", what, "run `fleet deploy` again: it installs what is missing")
    _refuse_escape(install, path, name)
    return path


def _refuse_escape(install: Path, path: Path, name: str) -> None:
    """A link may lead out of the install in two cases: a venv's python, and a binary of an adopted engine."""
    home = install.resolve()
    target = path.resolve()
    if target.is_relative_to(home):
        return
    folder_is_inside = path.parent.resolve().is_relative_to(home)
    if folder_is_inside and _VENV_PYTHON.match(name):
        return
    adopted = adopted_path(install)
    if folder_is_inside and adopted is not None and target.is_relative_to(adopted.resolve()):
        return
    raise ToolError("tool-not-allowed", f"{name} of install {install.name} leads out of the install, to {target}")


def adopted_path(install: Path) -> Path | None:
    """The folder of an adopted engine: `adopted_path` of its install.json; None for an install of ours."""
    try:
        document = json.loads((install / "install.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    path = document.get("adopted_path") if isinstance(document, dict) else None
    return Path(path) if isinstance(path, str) and path.startswith("/") else None
