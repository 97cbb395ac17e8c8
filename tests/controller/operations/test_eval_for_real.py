"""`fleet eval` with a real agent and the real llama.cpp: known answers give the known score, whoever is killed.

The model answers every question with "(C)", so that its score is the share of questions whose answer is C.
"""

import json
import os
import signal
import socket
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.mmlu_pro import ANSWERS, write_dataset
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

EACH = {subject: letters.count("C") for subject, letters in ANSWERS.items()}
ALL = sum(map(len, ANSWERS.values()))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Iterator[FleetWorld]:
    """One host that serves a model which always says C."""
    with fleet_world(tmp_path_factory.mktemp("eval")) as world:
        world.local_hosts("a")
        world.up("a")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / "chat-F16.gguf")
        model = str(world.folder / "chat-F16.gguf")
        world.run("deploy", model, "--hosts", "a", "--engine-path", str(llama_cpp_bin), "--context", "8192",
                  "--max-parallel", "2", "--port", str(free_port()), "--yes")  # fmt: skip
        write_dataset(world.folder / "mmlu")
        yield world


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(fleet: FleetWorld, *words: str) -> list[str]:
    return ["eval", "chat-f16", "--hosts", "a", "--dataset", str(fleet.folder / "mmlu"), "--yes", *words]


def journal(fleet: FleetWorld, protocol: str) -> list[str]:
    """The questions that have an answer on the host, once for each answer."""
    return [
        json.loads(line)["question"]
        for path in (fleet.folder / "a").glob(f"machines/*/evaluations/{protocol}-*/answers.jsonl")
        for line in path.read_text().splitlines()
    ]


def asked_for(folder: Path) -> list[int]:
    """Pids of what works on evaluations below a folder: the runner's child, its runner, the agent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words and ("ask.py" in words or "run-job" in words or "fleet_agent" in words):
                found.append(int(entry.name))
    return found


def kill_all(fleet: FleetWorld, running: "subprocess.Popen[str]", controller: int) -> None:
    for pid in (running.pid, controller, *asked_for(fleet.folder / "a")):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.wait()


def only_row(document: dict[str, Any]) -> dict[str, Any]:
    (host,) = document["hosts"]
    (evaluation,) = host["result"]["evaluations"]
    assert evaluation["problem"] is None, evaluation
    (row,) = evaluation["rows"]
    return dict(row)


def test_client_controller_agent_and_runner_are_killed_and_no_question_is_asked_twice(fleet: FleetWorld) -> None:
    controller = fleet.document("controller", "start")["pid"]
    words = command(fleet, "--protocol", "tiger", "--all", "--workers", "1")
    running = subprocess.Popen(fleet.command(*words), env=fleet.environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    eventually(lambda: len(journal(fleet, "tiger")) >= 5, "five answers")
    kill_all(fleet, running, controller)
    before = journal(fleet, "tiger")
    assert 5 <= len(before) < ALL
    fleet.run("up", "a", "--yes", "--manager", "background")
    row = only_row(fleet.document(*words))
    assert Counter(journal(fleet, "tiger")) == Counter({str(number): 1 for number in range(ALL)})
    assert row["score"] == pytest.approx(sum(EACH.values()) / ALL)
    assert {one["subject"]: one["correct"] for one in row["subjects"]} == EACH
    assert {one["n"] for one in row["subjects"]} == {10}
    assert (row["protocol"], row["n"], row["cut_off"], row["selection"]) == ("tiger", ALL, 0, "all")
    assert len(str(row["artifact_hash"])) == 64
    skipped = fleet.document(*words)
    assert [cell["action"] for cell in skipped["plan"]] == ["skip"]
    told = fleet.run("results", "quality", "--id", "1").stdout
    assert "33.3 %" in told and "computer science" in told and "MMLU-Pro (tiger 1)" in told


def test_lm_eval_scores_the_same_answers_on_a_scale_of_its_own(fleet: FleetWorld) -> None:
    """Few questions first, then all: only the others are asked."""
    few = only_row(fleet.document(*command(fleet, "--questions", "6")))
    assert (few["protocol"], few["n"], few["selection"]) == ("lm-eval", 6, f"6 of {ALL}, 2 a subject, seed 0")
    row = only_row(fleet.document(*command(fleet, "--all")))
    assert row["score"] == pytest.approx(sum(EACH.values()) / ALL)
    assert {one["subject"]: one["correct"] for one in row["subjects"]} == EACH
    assert Counter(journal(fleet, "lm-eval")) == Counter({str(number): 1 for number in range(ALL)})
    with sqlite3.connect(fleet.state / "fleet.db") as database:
        (raw,) = database.execute("SELECT raw FROM quality WHERE protocol = 'lm-eval' AND n = ?", (ALL,)).fetchone()
    assert row["title"] == "MMLU-Pro (lm-eval 0.4.13)"
    # What lm_eval itself says of each subject.
    assert json.loads(raw)["harness"] == {
        f"fleet_mmlu_pro_{subject.replace(' ', '_')}": right / 10 for subject, right in EACH.items()
    }


def test_answers_that_the_limit_cuts_off_are_counted_and_wrong(fleet: FleetWorld) -> None:
    """A limit of its own is a scale of its own: nothing of it is compared with the others."""
    words = command(fleet, "--protocol", "tiger", "--max-tokens", "3", "--subject", "comp")
    row = only_row(fleet.document(*words))
    assert (row["n"], row["cut_off"], row["score"]) == (10, 10, 0.0)
    assert row["settings"] == "3 tokens at most" and row["comparisons"] == []


def test_perplexity_and_divergence_of_two_quantizations(fleet: FleetWorld, llama_cpp_bin: Path) -> None:
    full = make_tiny_model(fleet.folder / "random", "random").gguf_path.rename(fleet.folder / "noise-F16.gguf")
    small = {}
    for name in ("Q8_0", "Q2_K"):
        small[name] = fleet.folder / f"noise-{name}.gguf"
        quantize = [str(llama_cpp_bin / "llama-quantize"), str(full), str(small[name]), name]
        subprocess.run(quantize, check=True, capture_output=True)
    corpus = fleet.folder / "corpus.txt"
    corpus.write_text("one two three four five six seven eight nine ten\n" * 400)
    words = [str(small["Q2_K"]), str(full), str(small["Q8_0"]), "--hosts", "a", "--perplexity", "--corpus", str(corpus),
             "--chunks", "2", "--engine-path", str(llama_cpp_bin), "--yes"]  # fmt: skip
    refused = fleet.document("eval", *words, code=3)
    assert refused["plan"][0]["problem"]["code"] == "busy"
    (host,) = fleet.document("eval", *words, "--pause-services")["hosts"]
    (evaluation,) = host["result"]["evaluations"]
    found = {(row["quantization"], row["metric"]): row for row in evaluation["rows"]}
    assert set(found) == {("F16", "perplexity"), *((name, metric) for name in small for metric in
                                                   ("perplexity", "kl_divergence"))}  # fmt: skip
    divergence = {name: found[name, "kl_divergence"] for name in small}
    assert 0 <= divergence["Q8_0"]["score"] < divergence["Q2_K"]["score"]
    assert divergence["Q8_0"]["high"] < divergence["Q2_K"]["low"]
    assert divergence["Q2_K"]["settings"].endswith(found["F16", "perplexity"]["artifact_hash"][:12])
    assert not list((fleet.folder / "a").glob("machines/*/evaluations/*/base.kld"))


def test_what_cannot_be_asked_is_said_before_anything_runs(fleet: FleetWorld) -> None:
    for words, says in (
        (["--subject", "chess"], "the subject 'chess' is none of mmlu"),
        (["--protocol", "apix"], "there is no protocol 'apix'"),
        (["--all", "--questions", "5"], "exclude each other"),
        (["--corpus", "x"], "go with --perplexity"),
        (["--dataset", "/nowhere"], "is no folder"),
    ):
        assert says in fleet.run(*command(fleet, *words), code=2).stderr
    files = fleet.run("eval", "chat-f16", "--hosts", "a", "--perplexity", "--protocol", "tiger", code=2)
    assert "--perplexity reads files, and asks no server" in files.stderr
    other = fleet.run(*command(fleet, "--quant", "Q2_K"), code=1)
    assert "no service of a serves chat-f16 Q2_K; there is chat-f16 F16, llama.cpp" in other.stderr


def test_a_model_that_nobody_serves_gets_a_server_of_its_own_where_asked(
    fleet: FleetWorld, llama_cpp_bin: Path
) -> None:
    fleet.run("stop", "chat-f16", "--hosts", "a", "--remove", "--yes")
    path = str(fleet.folder / "chat-F16.gguf")
    dataset = ["--dataset", str(fleet.folder / "mmlu"), "--protocol", "tiger", "--questions", "3", "--yes"]
    nobody = fleet.document("eval", path, "--hosts", "a", *dataset, code=1)
    assert nobody["plan"][0]["problem"]["code"] == "no-service"
    assert "--deploy" in nobody["plan"][0]["problem"]["remedy"]
    done = fleet.document("eval", path, "--hosts", "a", *dataset, "--deploy", "--engine-path", str(llama_cpp_bin))
    assert only_row(done)["n"] == 3
    assert fleet.document("ps", "a")["hosts"][0]["services"] == []
