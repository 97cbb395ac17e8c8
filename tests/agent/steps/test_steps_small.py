"""Adopting binaries, asking servers on loopback, checking files, git's rules."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.configuration import resolve_tool
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import (
    AdoptEngineStep,
    ChatProbeStep,
    GitCheckoutStep,
    HealthProbeStep,
    InstallerScriptStep,
    JobState,
    RunToolStep,
    Step,
    ToolRef,
    VerifyFileStep,
)
from fleet_agent.steps import (
    MODULES,
    adopt_engine,
    chat_probe,
    git_checkout,
    health_probe,
    installer_script,
    module_for,
)
from fleet_agent.steps.output import LineSplitter
from support.agent_jobs import Agent, problem_of, result_of, state_of


class Server:
    """A model server's two answers, on loopback."""

    def __init__(self) -> None:
        self.unhealthy = 0
        self.reply: Any = {
            "choices": [{"message": {"role": "assistant", "content": "hello"}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        }
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.unhealthy -= 1
                self.answer(503 if outer.unhealthy >= 0 else 200, {})

            def do_POST(self) -> None:
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.headers.append(self.headers.get("Authorization"))
                self.answer(200 if self.path == "/v1/chat/completions" else 404, outer.reply)

            def answer(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()
    thread.join()


def test_every_kind_of_step_has_a_module() -> None:
    for kind in MODULES:
        module = module_for(kind())
        assert callable(module.check)
        assert asyncio.iscoroutinefunction(module.run)


async def test_health_is_waited_for(agent: Agent, server: Server) -> None:
    server.unhealthy = 2
    result = result_of(await agent.run(Step("health", health_probe=HealthProbeStep(server.url + "/health", 20))))
    assert result["status"] == 200
    assert server.unhealthy == -1


async def test_health_gives_up_with_the_servers_word(agent: Agent, server: Server) -> None:
    server.unhealthy = 10_000
    code, message, _ = problem_of(
        await agent.run(Step("health", health_probe=HealthProbeStep(server.url + "/health", 0.5)))
    )
    assert (code, "503" in message) == ("unhealthy", True)


async def test_one_real_chat(agent: Agent, server: Server, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    step = ChatProbeStep(server.url + "/v1", "m", "Say hello.", 16, 20, str(tmp_path / "key"))
    result = result_of(await agent.run(Step("chat", chat_probe=step)))
    assert (result["text"], result["usage"]["completion_tokens"]) == ("hello", 1)
    assert result["seconds"] > 0
    assert server.headers == ["Bearer secret"]
    assert server.asked[0]["model"] == "m"
    assert (server.asked[0]["max_tokens"], server.asked[0]["messages"][0]["content"]) == (16, "Say hello.")


async def test_a_chat_with_nobody(agent: Agent, server: Server) -> None:
    step = ChatProbeStep("http://127.0.0.1:1/v1", "m", "Say hello.")
    assert problem_of(await agent.run(Step("chat", chat_probe=step)))[0] == "no-answer"


def test_replies_of_reasoning_models_and_of_broken_servers() -> None:
    reply = {"choices": [{"message": {"content": "", "reasoning_content": "hmm"}}]}
    assert chat_probe.parse_reply(json.dumps(reply).encode()) == {"text": "hmm", "usage": {}}
    for broken in (b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": ""}}]}', b"[1]"):
        with pytest.raises(JobProblem) as caught:
            chat_probe.parse_reply(broken)
        assert caught.value.code == "chat-failed"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com:80/", "https://127.0.0.1:80/", "http://10.0.0.1:80/", "http://127.0.0.1/",
        "http://127.0.0.1.evil.com:80/", "http://u@127.0.0.1:80/", "file:///etc/passwd", "http://127.0.0.1:99999/",
    ],
)  # fmt: skip
def test_only_loopback_is_asked(url: str) -> None:
    with pytest.raises(SpecProblem):
        health_probe.check(HealthProbeStep(url))


def make_binary(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


async def test_adopted_binaries_are_linked_and_run_as_an_install(agent: Agent, tmp_path: Path) -> None:
    make_binary(tmp_path / "bin", "llama-server", "echo 'version: 11434 (d1f2a3b)' >&2")
    make_binary(tmp_path / "bin", "llama-bench", "echo ran")
    adopt = AdoptEngineStep("llama-x", "llama.cpp", "", str(tmp_path / "bin"), ("llama-server", "llama-bench"))
    run_it = RunToolStep(ToolRef("llama-x", "bin/llama-bench"), capture_output=True)
    events = await agent.run(Step("adopt", adopt_engine=adopt), Step("run", run_tool=run_it))
    record = result_of(events)["install"]
    assert (record["version"], record["reported_version"]) == ("b11434", "b11434")
    assert record["adopted_path"] == str(tmp_path / "bin")
    assert result_of(events, 1)["stdout"] == "ran\n"
    assert resolve_tool("llama-x", "bin/llama-server", agent.layout, None).is_symlink()  # type: ignore[arg-type]
    again = await agent.run(Step("adopt", adopt_engine=adopt), job_id="again")
    assert result_of(again)["changed"] is False


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("version: 11434 (d1f2a3b)\nbuilt with GNU 12.2.0 for Linux x86_64", "b11434"),
        ("ggml_cuda_init: found 1 CUDA devices\nversion: 0.6.0-dev (build 11434, commit d1f2a3b)", "b11434"),
        ("version: 0.6.0-dev (build 0, commit d1f2a3b)", "0.6.0-dev-gd1f2a3b"),
        ("version: 0 (d1f2a3b)", "gd1f2a3b"),
        ("version: 0.6.0-dev (build 0, commit unknown)", "0.6.0-dev-sha-ba7816bf"),
        ("version: 0 (unknown)", "sha-ba7816bf"),
        ("some-engine version 1.2.3", "1.2.3"),
        ("hello", ""),
    ],
)
def test_the_version_of_an_adopted_engine_is_what_it_reports(tmp_path: Path, said: str, version: str) -> None:
    program = tmp_path / "llama-server"
    program.write_text("abc")
    assert adopt_engine.version_of(said, program) == version


async def test_adopting_what_is_not_there_or_does_not_run(agent: Agent, tmp_path: Path) -> None:
    make_binary(tmp_path / "bin", "llama-server", "echo 'error while loading shared libraries' >&2; exit 127")
    missing = AdoptEngineStep("k", "llama.cpp", "", str(tmp_path), ("llama-server",))
    broken = AdoptEngineStep("k", "llama.cpp", "", str(tmp_path / "bin"), ("llama-server",))
    assert problem_of(await agent.run(Step("a", adopt_engine=missing), job_id="one"))[0] == "engine-missing"
    code, message, _ = problem_of(await agent.run(Step("a", adopt_engine=broken), job_id="two"))
    assert (code, "shared libraries" in message) == ("engine-broken", True)
    assert not (agent.layout.engines_dir / "k").exists()


@pytest.mark.llama_cpp
async def test_the_real_llama_server_says_its_version(agent: Agent, llama_cpp_bin: Path) -> None:
    adopt = AdoptEngineStep("llama-real", "llama.cpp", "", str(llama_cpp_bin), ("llama-server",))
    record = result_of(await agent.run(Step("adopt", adopt_engine=adopt)))["install"]
    assert record["version"]


async def test_files_are_checked(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    for n, (step, code) in enumerate(
        [
            (VerifyFileStep(str(path)), None),
            (VerifyFileStep(str(path), 4), "wrong-length"),
            (VerifyFileStep(str(path), 3, "0" * 64), "hash-mismatch"),
            (VerifyFileStep(str(tmp_path / "no")), "file-missing"),
        ]
    ):
        events = await agent.run(Step("verify", verify_file=step), job_id=f"job-{n}")
        if code is None:
            assert state_of(events) is JobState.SUCCEEDED
        else:
            assert problem_of(events)[0] == code


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("/local/path", "main"), ("file:///x", "main"), ("http://x/y", "main"), ("ext::sh -c id", "main"),
        ("--upload-pack=x", "main"), ("https://-x/y", "main"), ("-oProxyCommand=x@host:y", "main"),
        ("https://x/y", "--help"), ("https://x/y", "a..b"), ("https://x/y", "a b"), ("https://x/y", "x@{1}"),
        ("https://x/y", ""), ("https://x/y", "refs.lock"), ("git@host:-x", "main"),
    ],
)  # fmt: skip
def test_git_takes_https_and_ssh_and_plain_refs_only(url: str, ref: str) -> None:
    with pytest.raises(SpecProblem):
        git_checkout.check(GitCheckoutStep(url, ref, "key"))


@pytest.mark.parametrize(
    "url", ["https://github.com/ggml-org/llama.cpp", "ssh://git@host:22/x.git", "git@host:a/b.git"]
)
@pytest.mark.parametrize("ref", ["master", "b8396", "v1.2-rc+1", "feature/x", "0" * 40])
def test_git_takes_usual_addresses(url: str, ref: str) -> None:
    git_checkout.check(GitCheckoutStep(url, ref, "key"))


def test_lines_end_at_carriage_returns_too() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"one\r\ntwo\rth")) == ["one", "two"]
    assert list(splitter.feed(b"ree\n\nfo\xff")) == ["three"]
    assert list(splitter.end()) == ["fo\ufffd"]
    assert len(list(LineSplitter().feed(b"x" * 100_000))) == 1


@pytest.mark.parametrize(
    "step",
    [
        InstallerScriptStep("http://example.com/install.sh", "a" * 64, "lms"),
        InstallerScriptStep("https://lmstudio.ai/install.sh", "", "lms"),
        InstallerScriptStep("https://lmstudio.ai/install.sh", "a" * 64, "git"),
    ],
)
def test_only_lm_studio_comes_by_a_script_whose_hash_is_known(step: InstallerScriptStep) -> None:
    installer_script.check(InstallerScriptStep("https://lmstudio.ai/install.sh", "a" * 64, "lms"))
    with pytest.raises(SpecProblem):
        installer_script.check(step)
