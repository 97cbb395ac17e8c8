"""An agent with the real llama-bench and a tiny model."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.agent_jobs import Agent, make_layout, running_agent
from support.bench_jobs import ENGINE
from support.tiny_model import make_tiny_model


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_cpp_bin: Path) -> AsyncIterator[Agent]:
    layout = make_layout(tmp_path, monkeypatch)
    install = layout.engines_dir / ENGINE
    (install / "bin").mkdir(parents=True)
    for name in ("llama-bench", "llama-server"):
        (install / "bin" / name).symlink_to(llama_cpp_bin / name)
    (install / "install.json").write_text(json.dumps({"adopted_path": str(llama_cpp_bin)}), encoding="utf-8")
    async with running_agent(layout) as one:
        yield one


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model").gguf_path
