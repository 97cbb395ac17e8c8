"""Questions asked of a server that misbehaves: none is lost, none asked twice, and no failure is a wrong answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.evaluating import ask as program
from fleet_agent.evaluating import asking
from fleet_agent.evaluating.asking import AskingFailed, Patience, Request, ask_all
from fleet_agent.evaluating.chat import Sampling, Server
from fleet_agent.evaluating.journal import ANSWERS, Answer, Journal
from support.answering_server import answering_server

SAMPLING = Sampling(max_tokens=64, temperature=0.1, top_p=0.95)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_DELAY_SECONDS", 0.01)


def requests(count: int) -> list[Request]:
    return [Request(str(number), [{"role": "user", "content": f"question {number}"}]) for number in range(count)]


def asked(folder: Path, url: str, count: int, workers: int = 1, **said: Any) -> list[Answer]:
    journal, heard = Journal(folder), list[Answer]()
    try:
        ask_all(requests(count), Server(url, "tiny", "secret"), SAMPLING, workers, journal, heard.append, **said)
    finally:
        journal.close()
    return heard


def test_a_question_is_asked_as_the_protocol_wants_and_its_answer_kept(tmp_path: Path) -> None:
    with answering_server() as server:
        (answer,) = asked(tmp_path, server.url, 1)
        (body,) = server.asked
    assert (answer.text, answer.finish, answer.tokens, answer.prompt_tokens) == ("The answer is (C).", "stop", 7, 11)
    assert (body["path"], body["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert body["messages"] == [{"role": "user", "content": "question 0"}]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["stream"]) == (64, 0.1, 0.95, True)
    assert "seed" not in body and "stop" not in body
    assert json.loads((tmp_path / ANSWERS).read_text())["question"] == "0"


@pytest.mark.parametrize("mood", ["broken", "error", "503", "500", "429"])
def test_a_server_that_fails_is_asked_again_until_it_answers(tmp_path: Path, mood: str) -> None:
    with answering_server(mood, mood) as server:
        (answer,) = asked(tmp_path, server.url, 1)
        assert len(server.asked) == 3
    assert answer.text == "The answer is (C)." and not answer.error


def test_usage_and_streams_are_not_required(tmp_path: Path) -> None:
    with answering_server("plain") as server:
        (answer,) = asked(tmp_path, server.url, 1)
    assert (answer.text, answer.finish, answer.tokens, answer.prompt_tokens) == ("The answer is (C).", "stop", 7, None)


def test_what_is_answered_is_never_asked_again(tmp_path: Path) -> None:
    with answering_server() as server:
        asked(tmp_path, server.url, 3, workers=2)
        heard = asked(tmp_path, server.url, 5, workers=2)
        texts = [body["messages"][0]["content"] for body in server.asked]
    assert sorted(texts) == [f"question {number}" for number in range(5)]
    assert sorted(answer.question for answer in heard) == ["0", "1", "2", "3", "4"]


def test_an_answer_to_another_prompt_is_none_to_this_one(tmp_path: Path) -> None:
    with answering_server() as server:
        asked(tmp_path, server.url, 1)
        journal = Journal(tmp_path)
        other = [Request("0", [{"role": "user", "content": "another prompt"}])]
        ask_all(other, Server(server.url, "tiny"), SAMPLING, 1, journal, lambda answer: None)
        journal.close()
        assert len(server.asked) == 2


def test_a_line_that_a_kill_tore_costs_that_question_only(tmp_path: Path) -> None:
    with answering_server() as server:
        asked(tmp_path, server.url, 2)
        path = tmp_path / ANSWERS
        path.write_bytes(path.read_bytes()[:-20])
        heard = asked(tmp_path, server.url, 2)
        assert len(server.asked) == 3
    assert len(heard) == 2
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def test_a_question_that_the_server_refuses_is_told_and_not_kept(tmp_path: Path) -> None:
    with answering_server("ok", "400", "ok") as server:
        heard = asked(tmp_path, server.url, 3)
        assert len(server.asked) == 3
    assert [bool(answer.error) for answer in heard] == [False, True, False]
    assert "HTTP 400" in heard[1].error and "told so" in heard[1].error
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == 2


def test_a_server_that_refuses_everything_ends_it(tmp_path: Path) -> None:
    with answering_server(for_good="400") as server, pytest.raises(AskingFailed, match="refuses every question"):
        asked(tmp_path, server.url, 50)
    assert (tmp_path / ANSWERS).read_text() == ""


def test_a_wrong_key_ends_it_at_once(tmp_path: Path) -> None:
    with answering_server("401") as server:
        with pytest.raises(AskingFailed, match="refuses to be asked: HTTP 401"):
            asked(tmp_path, server.url, 5)
        assert len(server.asked) == 1


def test_a_server_that_is_gone_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    with answering_server() as server:
        url = server.url
    with pytest.raises(AskingFailed, match="has answered nobody for"):
        asked(tmp_path, url, 2, patience=Patience(stall_seconds=1.0, away_seconds=0.2))


def task(folder: Path, **said: Any) -> None:
    questions = [
        {"id": str(number), "category": "math", "gold": gold, "text": f"question {number}"}
        for number, gold in enumerate("CAC")
    ]
    document = {
        "model": "tiny", "workers": 1, "sampling": {"max_tokens": 64}, "patterns": [r"answer is \(?([A-J])\)?"],
        "which": "last", "prefixes": {"math": "About math. "}, "questions": questions, "cut_off_is_wrong": True, **said,
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(document))


def run(folder: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """As the step runs it: by its path, in a process that knows nothing of the agent."""
    command = [sys.executable, "-I", str(program.__file__), str(folder), url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_program_counts_and_what_was_cut_off_is_wrong(tmp_path: Path) -> None:
    task(tmp_path)
    with answering_server("ok", "ok", "cut") as server:
        done = run(tmp_path, server.url)
        assert server.asked[0]["messages"][0]["content"] == "About math. question 0"
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"progress": {"done": 3, "total": 3, "correct": 1, "cut_off": 1}}
    answers = json.loads((tmp_path / "outcome.json").read_text())["answers"]
    assert [(one["id"], one["found"], one["finish"]) for one in answers] == [
        ("0", "C", "stop"), ("1", "C", "stop"), ("2", None, "length")
    ]  # fmt: skip
    assert answers[2]["tail"] == "The answer is (C)."


def test_the_program_says_why_it_gave_up(tmp_path: Path) -> None:
    task(tmp_path)
    with answering_server("404") as server:
        done = run(tmp_path, server.url)
    assert done.returncode == 4
    failed = json.loads(done.stdout.splitlines()[-1])["failed"]
    assert failed["code"] == "not-answered" and "HTTP 404" in failed["message"] and "fleet ps" in failed["remedy"]
    assert not (tmp_path / "outcome.json").exists()
