"""The agent's secrets: one private file each, replaced atomically, refused where a name or value breaks the rules."""

import stat
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.secrets import SecretStore
from fleet_agent.server.secrets import SecretCalls
from fleet_proto.v1 import agent_pb2
from support.agent_jobs import make_layout


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    return make_layout(tmp_path, monkeypatch)


async def test_the_calls_put_and_replace_and_tell_no_value(layout: Layout) -> None:
    calls, context = SecretCalls(SecretStore.of(layout)), None
    put: Any = agent_pb2.PutSecretRequest(name="hub-token", value=b"hf_first_value\n")
    first = await calls.PutSecret(put, context)
    again = await calls.PutSecret(put, context)
    assert (first.changed, again.changed) == (True, False)
    path = Path(first.path)
    assert path == layout.machine_dir / "secrets" / "hub-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (await calls.PutSecret(agent_pb2.PutSecretRequest(name="hub-token", value=b"hf_2nd"), context)).changed
    assert path.read_bytes() == b"hf_2nd" and [one.name for one in path.parent.iterdir()] == ["hub-token"]


@pytest.mark.parametrize("name", ["", "../agent.json", "A", "a/b", ".hidden", "service.yaml", "x" * 65])
def test_a_name_that_could_lead_elsewhere_is_refused(layout: Layout, name: str) -> None:
    with pytest.raises(ProblemError) as caught:
        SecretStore.of(layout).put(name, b"hf_value")
    assert caught.value.code == "bad-secret-name"


@pytest.mark.parametrize("value", [b"", b" \n", b"VALUE\nVALUE", b"VALUE\0", b"VALUE" * 4000])
def test_a_value_that_is_no_line_is_refused_and_not_repeated(layout: Layout, value: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        SecretStore.of(layout).put("key", value)
    assert caught.value.code == "bad-secret" and "VALUE" not in str(caught.value)


def test_an_earlier_file_that_others_may_read_does_not_stay_so(layout: Layout) -> None:
    store = SecretStore.of(layout)
    store.put("key", b"the same value")
    store.path("key").chmod(0o644)
    store.folder.chmod(0o755)
    store.put("key", b"the same value")
    assert stat.S_IMODE(store.path("key").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
