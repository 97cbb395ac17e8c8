"""A host of its own for each test: layout, a stand-in engine, and nothing left running afterwards."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.process import ProcessIdentity, is_alive, send_signal, signal, tree_members
from fleet_agent.services.managed import NAME_VARIABLE, name_marker
from fleet_agent.services.model import ReadinessProbe, ServiceSpec, ToolReference

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
LLAMA_KEY = "llama.cpp-test-00000000"

MakeSpec = Callable[..., ServiceSpec]


@pytest.fixture
def agent_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of an agent that lives in tmp_path alone."""
    return {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "FLEET_AGENT_ROOT": str(tmp_path / "root"),
        "FLEET_RUNTIME_DIR": str(tmp_path / "run"),
        "FLEET_MACHINE_ID": f"services-{tmp_path.name}",
    }


@pytest.fixture
def layout(agent_environment: dict[str, str]) -> Iterator[Layout]:
    """A layout with the stand-in engine installed; whatever runs under it at the end is killed."""
    made = Layout.from_environment(agent_environment)
    made.ensure()
    folder = made.engines_dir / "fake-1-00000000" / "bin"
    folder.mkdir(parents=True)
    program = folder / "server"
    program.write_text(f"#!{sys.executable}\n" + FAKE_ENGINE.read_text(encoding="utf-8"), encoding="utf-8")
    program.chmod(0o755)
    yield made
    nobody = ProcessIdentity(-1, "")
    names = {path.name.removeprefix("service-").removesuffix(".log") for path in made.logs_dir.glob("service-*.log")}
    for name in names:
        marker = f"{NAME_VARIABLE}={name_marker(made.services_dir, name)}"
        for one in tree_members(nobody, marker):
            send_signal(one, signal.SIGKILL)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def make_spec(free_port: int) -> MakeSpec:
    """Specs of the stand-in engine: make_spec("--say", "hello", name="a")."""

    def make(*arguments: str, name: str = "tiny", port: int = 0, **fields: object) -> ServiceSpec:
        port = port or free_port
        values: dict[str, object] = {
            "tool": ToolReference("bin/server", "fake-1-00000000"),
            "arguments": ("--port", str(port), *arguments),
            "readiness": ReadinessProbe("/health", start_limit_seconds=20.0, interval_seconds=0.2),
            **fields,
        }
        return ServiceSpec(name=name, port=port, **values)  # type: ignore[arg-type]

    return make


def alive(pid: int) -> bool:
    """Whether a process (no zombie) has this pid now."""
    from fleet_agent.process import identity_of

    identity = identity_of(pid)
    return identity is not None and is_alive(identity)
