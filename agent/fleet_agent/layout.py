"""Every path the agent uses, and the machine id. Importing it costs nothing: no grpc, no psutil."""

import hashlib
import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet_agent.configuration import AgentConfiguration, read_configuration
from fleet_agent.problem import ProblemError

# sun_path holds 104 bytes on macOS (108 on Linux) with its closing NUL.
SOCKET_PATH_LIMIT_BYTES = 104
_PRIVATE = 0o700


class LayoutError(ProblemError):
    """A folder or path that the agent cannot or must not use."""


@dataclass(frozen=True)
class Layout:
    """Absolute paths; everything of one machine is under machine_dir, since labs mount homes over the network."""

    machine_id: str
    root: Path
    machine_dir: Path
    agent_dir: Path
    jobs_dir: Path
    services_dir: Path
    logs_dir: Path
    engines_dir: Path
    sources_dir: Path
    hf_home: Path
    model_dir: Path | None
    runtime_dir: Path
    socket_path: Path

    @property
    def configuration_path(self) -> Path:
        return self.machine_dir / "agent.json"

    @property
    def log_path(self) -> Path:
        return self.logs_dir / "agent.log"

    @property
    def lock_path(self) -> Path:
        """Held by the one agent of this user and machine; beside the socket, because locks on a network file
        system are not to be trusted."""
        return self.socket_path.with_suffix(".lock")

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "Layout":
        """The layout of this machine and user. Reads the machine id and agent.json, creates nothing.

        Raises LayoutError for a socket path that is too long, ConfigurationError for a bad agent.json.
        """
        env = os.environ if env is None else env
        home = Path(env.get("HOME") or Path.home())
        root = Path(env.get("FLEET_AGENT_ROOT") or home / ".local" / "share" / "fleet").absolute()
        machine_id = read_machine_id(env)
        machine_dir = root / "machines" / machine_id
        configuration = read_configuration(machine_dir / "agent.json")
        runtime_dir = Path(env.get("FLEET_RUNTIME_DIR") or f"/tmp/fleet-{os.getuid()}").absolute()
        return cls(
            machine_id=machine_id,
            root=root,
            machine_dir=machine_dir,
            agent_dir=machine_dir / "agent",
            jobs_dir=machine_dir / "jobs",
            services_dir=machine_dir / "services",
            logs_dir=machine_dir / "logs",
            engines_dir=machine_dir / "engines",
            sources_dir=machine_dir / "engines" / "sources",
            hf_home=_hugging_face_home(configuration, env, home),
            model_dir=configuration.model_dir,
            runtime_dir=runtime_dir,
            socket_path=_checked_socket_path(runtime_dir / f"{machine_id[:12]}.sock"),
        )

    def ensure(self) -> None:
        """Creates the folders. Raises LayoutError for a runtime folder that is not ours alone, or a full or
        read-only disk."""
        for folder in (
            self.machine_dir, self.agent_dir, self.jobs_dir, self.services_dir, self.logs_dir, self.sources_dir
        ):  # fmt: skip
            try:
                folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            except OSError as error:
                remedy = "free some space, or set FLEET_AGENT_ROOT to a folder that this user may write"
                raise LayoutError("state-not-writable", f"cannot create {folder}: {error.strerror}", remedy) from error
        ensure_private_folder(self.runtime_dir)


def ensure_private_folder(folder: Path) -> None:
    """Creates `folder` with mode 0700, or checks that it is a real folder of ours with that mode.

    Anybody may create a folder in /tmp first, so one that is not ours alone is refused, never repaired.
    Raises LayoutError.
    """
    try:
        folder.mkdir(mode=_PRIVATE, parents=True)
        folder.chmod(_PRIVATE)
    except FileExistsError:
        pass
    except OSError as error:
        raise LayoutError("runtime-folder", f"cannot create {folder}: {error.strerror}", _RUNTIME_REMEDY) from error
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise LayoutError("runtime-folder", f"{folder} is a link or a file, not a folder of ours", _RUNTIME_REMEDY)
    if found.st_uid != os.getuid():
        raise LayoutError("runtime-folder", f"{folder} belongs to user id {found.st_uid}, not to us", _RUNTIME_REMEDY)
    if stat.S_IMODE(found.st_mode) != _PRIVATE:
        mode = stat.S_IMODE(found.st_mode)
        remedy = f"if you trust what is in it: chmod 700 {folder}"
        raise LayoutError("runtime-folder", f"{folder} has mode {mode:04o}, not 0700", remedy)


_RUNTIME_REMEDY = "remove it, or set FLEET_RUNTIME_DIR to a folder of your own outside the home"


def _checked_socket_path(path: Path) -> Path:
    length = len(os.fsencode(path)) + 1
    if length > SOCKET_PATH_LIMIT_BYTES:
        raise LayoutError(
            "socket-path-too-long",
            f"socket path {path} takes {length} bytes, more than the {SOCKET_PATH_LIMIT_BYTES} a unix socket may have",
            "set FLEET_RUNTIME_DIR to a shorter folder, such as /tmp/fleet-$UID",
        )
    return path


def _hugging_face_home(configuration: AgentConfiguration, env: Mapping[str, str], home: Path) -> Path:
    """As huggingface_hub finds it, except that agent.json comes first."""
    named = configuration.environment.get("HF_HOME") or env.get("HF_HOME")
    if named:
        return Path(named.replace("~", str(home), 1) if named.startswith("~/") else named).absolute()
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "huggingface"


def read_machine_id(env: Mapping[str, str]) -> str:
    """32 hex digits that are the same for every process of this machine, and tell nobody its real id."""
    raw = env.get("FLEET_MACHINE_ID") or _linux_machine_id() or _mac_platform_uuid() or _kept_random_id()
    return hashlib.sha256(f"fleet machine {raw}".encode()).hexdigest()[:32]


def _linux_machine_id() -> str | None:
    """/etc/machine-id; it is empty or "uninitialized" in images that have not booted."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if re.fullmatch(r"[0-9a-f]{32}", text):
            return text
    return None


def _mac_platform_uuid() -> str | None:
    if sys.platform != "darwin":
        return None
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_platform_uuid(answer)


def parse_platform_uuid(ioreg_output: str) -> str | None:
    """The IOPlatformUUID in what `ioreg -rd1 -c IOPlatformExpertDevice` printed."""
    found = re.search(r'"IOPlatformUUID"\s*=\s*"([0-9A-Fa-f-]{36})"', ioreg_output)
    return found.group(1) if found else None


def _kept_random_id(folder: Path = Path("/var/tmp")) -> str:
    """A random id kept on the host itself (not in a home, which other hosts may share), one per user."""
    path = folder / f"fleet-machine-id-{os.getuid()}"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "r+", encoding="ascii") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                raise LayoutError("machine-id", f"{path} belongs to another user", "set FLEET_MACHINE_ID")
            kept = file.read().strip()
            if re.fullmatch(r"[0-9a-f]{32}", kept):
                return kept
            fresh = os.urandom(16).hex()
            file.seek(0)
            file.truncate()
            file.write(fresh + "\n")
            return fresh
    except OSError as error:
        remedy = "set FLEET_MACHINE_ID to a name that no other machine has"
        raise LayoutError(
            "machine-id", f"this machine has no id, and {path} cannot be kept: {error}", remedy
        ) from error
