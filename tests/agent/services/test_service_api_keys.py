"""A server's API key: handed over at each start, found in no journal, status or log, gone with its service."""

import asyncio
import json
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.redaction import Redactor
from fleet_agent.secrets import SecretStore
from fleet_agent.services.api_keys import check_api_key, hand_over
from fleet_agent.services.logs import LogLimits, ServiceLog
from fleet_agent.services.model import ApiKey, ConfigurationFile, InvalidServiceError, ServiceSpec, ServiceState
from support.service_host import PATIENT, pid_of, running, until
from support.tiny_model import make_tiny_model

KEY = 'sk-quoted-"7f3a-key'
SECRET = "api-key-0123456789abcdef"
OTHER = "api-key-fedcba9876543210"
MakeSpec = Callable[..., ServiceSpec]

FILE = ApiKey(SECRET, file_option="--api-key-file")
ENVIRONMENT = ApiKey(SECRET, environment="VLLM_API_KEY")
CONFIGURATION = ApiKey(SECRET, configuration=ConfigurationFile("--config", "api-key"))


@pytest.fixture
def store(layout: Layout) -> SecretStore:
    made = SecretStore.of(layout)
    made.put(SECRET, KEY.encode())
    return made


def test_each_way_hands_the_key_over_outside_the_command_line(make_spec: MakeSpec, store: SecretStore) -> None:
    by_file = hand_over(make_spec(api_key=FILE), store)
    assert by_file.arguments == ("--api-key-file", str(store.path(SECRET))) and not by_file.environment
    by_environment = hand_over(make_spec(api_key=ENVIRONMENT), store)
    assert by_environment.environment == {"VLLM_API_KEY": KEY} and not by_environment.arguments
    assert KEY not in repr(by_environment)
    by_configuration = hand_over(make_spec(api_key=CONFIGURATION), store)
    option, path = by_configuration.arguments
    assert option == "--config" and path == str(store.folder / "tiny.yaml")
    text = Path(path).read_text()
    assert text.startswith("api-key: ") and json.loads(text.removeprefix("api-key: ")) == KEY
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert hand_over(make_spec(), store).arguments == ()


def test_a_key_that_is_gone_is_named_without_its_value(make_spec: MakeSpec, store: SecretStore) -> None:
    store.remove(SECRET)
    with pytest.raises(ProblemError, match="the API key of tiny is not on this host") as caught:
        hand_over(make_spec(api_key=FILE), store)
    assert caught.value.code == "no-secret"


@pytest.mark.parametrize(
    "key",
    [
        ApiKey(SECRET),
        ApiKey(SECRET, file_option="--api-key-file", environment="VLLM_API_KEY"),
        ApiKey(SECRET, environment="LD_PRELOAD"),
        ApiKey(SECRET, file_option="-x y"),
        ApiKey(SECRET, configuration=ConfigurationFile("--config", "a: b\nc")),
        ApiKey(SECRET, configuration=ConfigurationFile("--config", "")),
    ],
)
def test_a_key_that_no_server_takes_so_is_refused(make_spec: MakeSpec, key: ApiKey) -> None:
    with pytest.raises(InvalidServiceError):
        check_api_key(make_spec(api_key=key))


async def test_the_environment_has_the_key_and_nothing_that_is_kept(
    layout: Layout, make_spec: MakeSpec, store: SecretStore
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(api_key=ENVIRONMENT))
        status = await until(supervisor, ServiceState.READY)
        environment = Path(f"/proc/{pid_of(status)}/environ").read_bytes()
        assert f"VLLM_API_KEY={KEY}".encode() in environment.split(b"\0")
        assert KEY not in repr(status)
        await supervisor.stop("tiny")
    assert files_with(layout.root, KEY) == [store.path(SECRET)]


async def test_removing_the_service_removes_its_key_and_configuration(
    layout: Layout, make_spec: MakeSpec, store: SecretStore
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec(api_key=CONFIGURATION))
        assert (store.folder / "tiny.yaml").exists()
        await supervisor.stop("tiny")
        assert store.path(SECRET).exists()  # it may be started again
        await supervisor.stop("tiny", remove=True)
    assert list(store.folder.iterdir()) == []


async def test_another_key_replaces_the_server_and_the_former_key_goes(
    layout: Layout, make_spec: MakeSpec, store: SecretStore
) -> None:
    store.put(OTHER, b"sk-the-second-key")
    async with running(layout) as supervisor:
        first = await supervisor.apply(make_spec(api_key=FILE))
        await supervisor.apply(make_spec(api_key=FILE))
        second = await supervisor.apply(make_spec(api_key=replace(FILE, secret=OTHER)))
        await supervisor.stop("tiny")
    assert first.spec_digest != second.spec_digest
    assert [path.name for path in store.folder.iterdir()] == [OTHER]


async def test_a_key_that_two_services_share_stays_until_the_last(
    layout: Layout, make_spec: MakeSpec, store: SecretStore, free_port: int
) -> None:
    async with running(layout) as supervisor:
        for name, port in (("a", free_port), ("b", another_port())):
            await supervisor.apply(make_spec(name=name, port=port, api_key=FILE))
        await supervisor.stop("a", remove=True)
        assert store.path(SECRET).exists()
        await supervisor.stop("b", remove=True)
    assert not store.path(SECRET).exists()


async def test_a_refused_service_leaves_no_key(layout: Layout, make_spec: MakeSpec, store: SecretStore) -> None:
    async with running(layout) as supervisor:
        with pytest.raises(ProblemError):
            await supervisor.apply(replace(make_spec(api_key=FILE), tool=replace(make_spec().tool, name="bin/none")))
    assert not store.path(SECRET).exists()


async def test_a_server_that_prints_its_key_leaves_none_in_its_log(
    layout: Layout, make_spec: MakeSpec, store: SecretStore
) -> None:
    async with running(layout) as supervisor:
        await supervisor.apply(make_spec("--say", f"server_args=(api_key={KEY!r})", api_key=FILE))
        await until(supervisor, ServiceState.READY)
        said = b"".join([chunk async for chunk in supervisor.read_log("tiny")]).decode()
        await supervisor.stop("tiny")
    assert "api_key='" + "*" * len(KEY) + "'" in said
    assert files_with(layout.logs_dir, KEY) == []


def test_a_log_is_scrubbed_over_block_borders_and_before_it_is_rotated(tmp_path: Path, store: SecretStore) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = ServiceLog(folder / "a.log", LogLimits(largest_bytes=1_500_000, kept_files=2), Redactor(store))
    block = 1 << 20
    log.path.write_bytes(b"x" * (block - 5) + KEY.encode() + b"y" * 100 + KEY.encode()[:7])
    log.scrub()
    with log.path.open("ab") as file:  # the rest of a key that was half written at the last look
        file.write(KEY.encode()[7:] + b"z" * 500_000)
    assert log.rotate_if_large()
    assert files_with(folder, KEY) == []
    text = (folder / "a.log.1").read_bytes()
    assert text.count(b"*") == 2 * len(KEY) and text.startswith(b"x") and text.endswith(b"z")


def test_redaction_knows_how_json_writes_a_key_and_leaves_short_words_alone(store: SecretStore) -> None:
    redactor = Redactor(store)
    assert redactor.text(f"key {KEY} and {json.dumps(KEY)}") == 'key [secret] and "[secret]"'
    store.put("short", b"on")
    assert redactor.text("it goes on") == "it goes on"
    store.put(SECRET, b"sk-the-next-key")
    assert redactor.text("sk-the-next-key") == "[secret]"


@pytest.mark.llama_cpp
async def test_the_real_llama_server_asks_for_the_key(
    llama_layout: Layout, llama_spec: Callable[..., ServiceSpec], tmp_path: Path
) -> None:
    store = SecretStore.of(llama_layout)
    store.put(SECRET, KEY.encode())
    spec = replace(llama_spec(make_tiny_model(tmp_path).gguf_path), api_key=FILE)
    async with running(llama_layout) as supervisor:
        await supervisor.apply(spec)
        status = await until(supervisor, ServiceState.READY)
        assert await answer_code(spec.port, "") == 401
        assert await answer_code(spec.port, "wrong") == 401
        assert await answer_code(spec.port, KEY) == 200
        process = Path(f"/proc/{pid_of(status)}")
        assert KEY.encode() not in (process / "cmdline").read_bytes()
        assert KEY.encode() not in (process / "environ").read_bytes()
        assert stat.S_IMODE((process / "environ").stat().st_mode) == 0o400
        await supervisor.stop("tiny")
    assert files_with(llama_layout.root, KEY) == [store.path(SECRET)]
    assert stat.S_IMODE(store.path(SECRET).stat().st_mode) == 0o600


def another_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answer_code(port: int, key: str) -> int:
    body = json.dumps({"messages": [{"role": "user", "content": "?"}], "max_tokens": 4}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)

    def ask() -> int:
        try:
            with urllib.request.urlopen(request, timeout=PATIENT) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    return await asyncio.to_thread(ask)


def files_with(folder: Path, text: str) -> list[Path]:
    """Every file below that holds the text."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if text.encode() in path.read_bytes()]
