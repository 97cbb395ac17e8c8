"""An agent of its own for the tests of steps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.agent_jobs import Agent, make_layout, running_agent


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        yield one
