"""agent.json and the two allowlists."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.configuration import (
    AgentConfiguration,
    ConfigurationError,
    EnvironmentNotAllowedError,
    ToolError,
    allowed_environment,
    child_environment,
    parse_configuration,
    read_configuration,
    resolve_tool,
)
from fleet_agent.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.from_environment(
        {"HOME": str(tmp_path), "FLEET_RUNTIME_DIR": str(tmp_path / "run"), "FLEET_MACHINE_ID": "m"}
    )
    layout.ensure()
    return layout


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "name", ["HF_ENDPOINT", "CUDA_VISIBLE_DEVICES", "LLAMA_ARG_THREADS", "VLLM_USE_V1", "no_proxy"]
)
def test_allowed_variables(name: str) -> None:
    assert allowed_environment(name)


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PATH", "PYTHONPATH", "HF_TOKEN", "BASH_ENV", "LLAMA_", "VLLM_a b", "llama_x", "MLX_X\n", ""]
)
def test_forbidden_variables(name: str) -> None:
    assert not allowed_environment(name)


def test_a_file_that_is_not_there_is_an_empty_configuration(tmp_path: Path) -> None:
    assert read_configuration(tmp_path / "agent.json") == AgentConfiguration()


def test_a_whole_configuration(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    document = {
        "environment": {"HF_HUB_OFFLINE": "1"},
        "model_dir": "/data/models",
        "tools": {"cmake": "/opt/cmake/bin/cmake"},
        "limits": {"parallel_jobs": 2},
    }
    file.write_text(json.dumps(document))
    assert read_configuration(file) == AgentConfiguration(
        environment={"HF_HUB_OFFLINE": "1"},
        model_dir=Path("/data/models"),
        tools={"cmake": Path("/opt/cmake/bin/cmake")},
        limits={"parallel_jobs": 2.0},
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object, found list"),
        ({"enviroment": {}}, "unknown key 'enviroment'"),
        ({"environment": {"LD_PRELOAD": "x.so"}}, "'LD_PRELOAD' is not in the agent's allowlist"),
        ({"environment": {"HF_HOME": "a\nb"}}, "'HF_HOME' holds a line end or a NUL"),
        ({"environment": {"OMP_NUM_THREADS": 4}}, "values are strings"),
        ({"model_dir": "models"}, "'models' is not an absolute path"),
        ({"model_dir": 7}, "model_dir: expected a path"),
        ({"tools": {"bash": "/bin/bash"}}, "tools.bash is not one of git,"),
        ({"tools": {"git": "git"}}, "tools.git: 'git' is not an absolute path"),
        ({"limits": {"x": "many"}}, "limits: expected an object of numbers"),
        ({"limits": {"x": True}}, "limits: expected an object of numbers"),
    ],
)
def test_each_mistake_is_named_with_its_key(document: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(document, "agent.json")
    assert message in caught.value.message
    assert caught.value.message.startswith("agent.json: ")


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    file.write_text("{,}")
    with pytest.raises(ConfigurationError, match="is not JSON"):
        read_configuration(file)


def test_a_child_gets_the_login_and_the_allowlist_and_nothing_else() -> None:
    own = {
        "HOME": "/home/alice",
        "USER": "alice",
        "PATH": "/usr/bin",
        "AWS_SECRET": "x",
        "LD_PRELOAD": "x",
        "HF_HOME": "/a",
    }
    configuration = AgentConfiguration(environment={"HF_HOME": "/data/hf", "HF_ENDPOINT": "https://mirror"})
    environment = child_environment(configuration, {"CUDA_VISIBLE_DEVICES": "1", "HF_ENDPOINT": "https://other"}, own)
    path = environment.pop("PATH")
    assert environment == {
        "HOME": "/home/alice",
        "USER": "alice",
        "LANG": "C.UTF-8",
        "HF_HOME": "/data/hf",
        "HF_ENDPOINT": "https://other",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert path.split(":")[0] == "/usr/bin"
    assert str(Path(sys.prefix) / "bin") in path.split(":")


def test_a_child_is_refused_a_variable_outside_the_allowlist() -> None:
    with pytest.raises(EnvironmentNotAllowedError, match="PYTHONPATH"):
        child_environment(AgentConfiguration(), {"PYTHONPATH": "/evil"})


def test_a_tool_inside_an_install_is_found(layout: Layout) -> None:
    server = program(layout.engines_dir / "llama.cpp-b1-00000000/bin/llama-server")
    found = resolve_tool("llama.cpp-b1-00000000", "bin/llama-server", layout, AgentConfiguration())
    assert found == server


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("k", "../other/bin/tool"), ("k", "/bin/sh"), ("k", ""), ("../k", "bin/tool"), ("a/b", "bin/tool"),
        (".", "k/bin/tool"), ("k\n", "bin/tool"),
    ],
)  # fmt: skip
def test_a_name_that_leaves_the_install_is_refused(layout: Layout, key: str, name: str) -> None:
    program(layout.engines_dir / "k/bin/tool")
    program(layout.engines_dir / "other/bin/tool")
    with pytest.raises(ToolError) as caught:
        resolve_tool(key, name, layout, AgentConfiguration())
    assert caught.value.code == "tool-not-allowed"
    assert caught.value.status == "INVALID_ARGUMENT"


def test_a_missing_install_and_a_missing_tool_are_told_apart(layout: Layout) -> None:
    with pytest.raises(ToolError, match="k is not installed"):
        resolve_tool("k", "bin/tool", layout, AgentConfiguration())
    program(layout.engines_dir / "k/bin/tool")
    with pytest.raises(ToolError, match="bin/other is missing from install k"):
        resolve_tool("k", "bin/other", layout, AgentConfiguration())


def test_a_link_out_of_the_install_is_refused_but_a_venvs_python_may_be_one(layout: Layout, tmp_path: Path) -> None:
    outside = program(tmp_path / "outside/python3")
    for name in ("venv/bin/python3", "venv/bin/tool"):
        link = layout.engines_dir / "k" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside)
    found = resolve_tool("k", "venv/bin/python3", layout, AgentConfiguration())
    assert found == layout.engines_dir / "k/venv/bin/python3", "unresolved: a venv's python finds its venv by its path"
    with pytest.raises(ToolError, match="leads out of the install"):
        resolve_tool("k", "venv/bin/tool", layout, AgentConfiguration())


def test_a_venv_that_is_itself_a_link_out_is_refused(layout: Layout, tmp_path: Path) -> None:
    program(tmp_path / "outside/bin/python3")
    (layout.engines_dir / "k").mkdir()
    (layout.engines_dir / "k/venv").symlink_to(tmp_path / "outside")
    with pytest.raises(ToolError, match="leads out of the install"):
        resolve_tool("k", "venv/bin/python3", layout, AgentConfiguration())


def test_an_adopted_engine_may_link_to_the_adopted_folder_only(layout: Layout, tmp_path: Path) -> None:
    adopted, foreign = program(tmp_path / "llama/bin/llama-server"), program(tmp_path / "other/llama-bench")
    folder = layout.engines_dir / "k/bin"
    folder.mkdir(parents=True)
    (folder / "llama-server").symlink_to(adopted)
    (folder / "llama-bench").symlink_to(foreign)
    (layout.engines_dir / "k/install.json").write_text(json.dumps({"adopted_path": str(adopted.parent)}))
    assert resolve_tool("k", "bin/llama-server", layout, AgentConfiguration()) == folder / "llama-server"
    with pytest.raises(ToolError, match="leads out of the install"):
        resolve_tool("k", "bin/llama-bench", layout, AgentConfiguration())


def test_a_host_tool_is_taken_from_the_configuration_first_then_from_the_path(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = program(tmp_path / "bin/ninja")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert resolve_tool("", "ninja", layout, AgentConfiguration()) == on_path
    named = program(tmp_path / "opt/ninja")
    assert resolve_tool("", "ninja", layout, AgentConfiguration(tools={"ninja": named})) == named
    missing = AgentConfiguration(tools={"ninja": tmp_path / "gone/ninja"})
    with pytest.raises(ToolError, match="ninja is not on this host"):
        resolve_tool("", "ninja", layout, missing)


@pytest.mark.parametrize("name", ["bash", "sh", "curl", "/usr/bin/git", "git;id"])
def test_other_host_tools_are_refused(layout: Layout, name: str) -> None:
    with pytest.raises(ToolError) as caught:
        resolve_tool("", name, layout, AgentConfiguration())
    assert caught.value.code == "tool-not-allowed"
