"""`fleet backends upgrade --golden-bench` for real: two hosts, the real llama.cpp as two versions, one of them bad."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

MODEL = "tiny-golden"
PORTS = {"a": "18821", "b": "18822"}
# The machine that runs the tests is no quiet one: nobody is a stranger here, and only a fall by most of it counts.
SUITE = """idle: {foreign_cpu_percent: 0}
parts:
  - {prompt_tokens: 4, generation_tokens: 2, repetitions: 8}
probe: {prompt: Say hello., max_tokens: 12}
"""
THRESHOLD = "80%"
# A build whose measurement begins when the test lets it: "measuring" appears in its folder, and "hold" goes.
GATED_BENCH = """#!/bin/sh
case " $* " in *" --progress "*)
    : > "{folder}/measuring"
    while [ -e "{folder}/hold" ]; do sleep 0.05; done
    # Threads that wait for each other are a thousand times slower on a machine in use.
    set -- "$@" --threads 1
esac
exec "{real}" "$@"
"""
SAME = '#!/bin/sh\nexec "{real}" "$@"\n'
# A build that computes with two threads on one core: each waits for the other's time slice, a hundred times a token.
SLOW_BENCH = """#!{python}
import os, sys
if "--version" not in sys.argv and "--help" not in sys.argv:
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    sys.argv += ["--threads", "2"]
os.execv("{real}", ["{real}", *sys.argv[1:]])
"""
# A build that gives other answers: it serves another model than it was told to.
OTHER_MODEL = """#!/bin/sh
case "$1" in --version|--help) exec "{real}" "$@";; esac
for word; do
    shift
    case "$word" in *{name}.gguf) word="{other}";; esac
    set -- "$@" "$word"
done
exec "{real}" "$@"
"""


class Lab:
    """Hosts a and b serve one model on version b1; `new` is the folder of a second version."""

    def __init__(self, world: FleetWorld, real: Path) -> None:
        self.world, self.real, self.new = world, real, world.folder / "new"
        self.threshold = THRESHOLD

    def build(self, version: str, **programs: str) -> None:
        """The second version: the real programs, and those that the test writes."""
        self.version, self.new = version, self.world.folder / version
        self.new.mkdir()
        for name in ("llama-server", "llama-bench"):
            text = programs.get(name.replace("-", "_"), SAME.format(real=self.real / name))
            (self.new / name).write_text(text)
            (self.new / name).chmod(0o755)

    @property
    def upgrade(self) -> list[str]:
        return ["backends", "upgrade", "llama.cpp", "--hosts", "a,b", "--version", self.version, "--engine-path",
                str(self.new), "--golden-bench", "--threshold", self.threshold, "--canary", "a", "--yes"]  # fmt: skip

    def build_gated(self, version: str, **programs: str) -> None:
        """A second version whose measurement waits."""
        folder = self.world.folder / version
        bench = GATED_BENCH.format(folder=folder, real=self.real / "llama-bench")
        self.build(version, llama_bench=bench, **programs)
        (folder / "hold").touch()

    def start(self) -> "subprocess.Popen[str]":
        """The upgrade, under way in a process of its own, which is the controller, too."""
        return subprocess.Popen(
            self.world.command(*self.upgrade), env=self.world.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until_measuring(self, running: "subprocess.Popen[str]") -> None:
        """Until the new version is being measured; the mark is taken away again."""
        mark = self.new / "measuring"
        eventually(lambda: mark.exists() or running.poll() is not None, f"{self.version} is measured")
        if not mark.exists():
            pytest.fail(str(running.communicate()[1]))
        mark.unlink()

    def bench_runner(self) -> int:
        """The runner that measures on host a."""
        (found,) = (
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if (words := _words(path))[-2:-1] == ["run-job"] and f"{self.world.folder}/a/" in words[-1]
            and "/bench-" in words[-1]
        )  # fmt: skip
        return found

    def versions(self) -> dict[str, str]:
        hosts = self.world.document("ps", "all")["hosts"]
        return {host["host"]: one["spec"]["backend_version"] for host in hosts for one in host["services"]}

    def measured(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.world.document("results", "list")["results"]
        return [row for row in rows if row["suite"] == "golden"]


def _words(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, llama_cpp_bin: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("golden")) as made:
        made.local_hosts(*PORTS)
        made.up(*PORTS)
        make_tiny_model(made.folder / "chain", "chain").gguf_path.rename(made.folder / f"{MODEL}.gguf")
        make_tiny_model(made.folder / "random", "random").gguf_path.rename(made.folder / "other.gguf")
        (made.config / "suites").mkdir()
        (made.config / "suites" / "golden.yaml").write_text(SUITE)
        for host, port in PORTS.items():
            made.run(
                "deploy", str(made.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
                "--backend-version", "b1", "--engine-path", str(llama_cpp_bin), "--context", "512", "--port", port,
                "--hosts", host, "--yes",
            )  # fmt: skip
        yield made


@pytest.fixture
def lab(world: FleetWorld, llama_cpp_bin: Path) -> Lab:
    return Lab(world, llama_cpp_bin)


def test_a_slower_version_is_refused_and_the_other_host_is_left_alone(lab: Lab) -> None:
    lab.build("b2", llama_bench=SLOW_BENCH.format(python=sys.executable, real=lab.real / "llama-bench"))
    planned = lab.world.run(*lab.upgrade, "--dry-run").stdout
    assert "canary: measured before and after" in planned and "golden chat" not in lab.world.run("ps", "all").stdout
    assert "measure before" in planned and "measure after" in planned and "smoke test before" in planned
    done = lab.world.run(*lab.upgrade, code=1)
    assert f"{MODEL} is not as good on llama.cpp b2: slower: " in done.stderr, done.stderr
    assert "it runs on b1 again" in done.stderr
    assert "b: not upgraded, since canary a failed" in done.stderr
    assert " worse" in done.stdout and " % " in done.stdout
    assert lab.versions() == {"a": "b1", "b": "b1"}
    assert {row["backend_version"] for row in lab.measured()} == {"b1", "b2"}


def test_a_version_with_another_reply_is_refused(lab: Lab) -> None:
    script = OTHER_MODEL.format(real=lab.real / "llama-server", name=MODEL, other=lab.world.folder / "other.gguf")
    lab.build("b3", llama_server=script)
    done = lab.world.document(*lab.upgrade, code=1)
    canary, other = done["hosts"]
    assert "another reply to the golden chat: " in canary["problem"]["message"]
    (judgement,) = canary["result"]["golden"]
    assert judgement["reply_before"] != judgement["reply_after"]
    assert {figure["test"] for figure in judgement["figures"]} == {"pp4", "tg2"}
    assert other["problem"]["code"] == "canary-failed"
    assert lab.versions() == {"a": "b1", "b": "b1"}


def test_a_bad_version_goes_back_though_the_command_was_killed_while_it_was_measured(lab: Lab) -> None:
    script = OTHER_MODEL.format(real=lab.real / "llama-server", name=MODEL, other=lab.world.folder / "other.gguf")
    lab.build_gated("b5", llama_server=script)
    running = lab.start()
    lab.until_measuring(running)
    running.kill()
    running.wait()
    assert lab.versions() == {"a": "b5", "b": "b1"}  # moved and not proven
    (lab.new / "hold").unlink()
    done = lab.world.run(*lab.upgrade, code=1)
    assert "another reply to the golden chat: " in done.stderr and "it runs on b1 again" in done.stderr
    assert lab.versions() == {"a": "b1", "b": "b1"}


def test_a_good_version_is_proven_though_runner_and_command_were_killed_while_it_was_measured(lab: Lab) -> None:
    lab.build_gated("b6")
    lab.threshold = "90%"
    running = lab.start()
    lab.until_measuring(running)
    os.kill(lab.bench_runner(), signal.SIGKILL)
    lab.until_measuring(running)  # the agent's new runner measures anew
    assert running.poll() is None
    running.kill()
    running.wait()
    (lab.new / "hold").unlink()
    done = lab.world.run(*lab.upgrade)
    assert "as good" in done.stdout
    assert lab.versions() == {"a": "b6", "b": "b6"}
    assert "nothing to change" in lab.world.run(*lab.upgrade).stdout


def test_a_version_that_is_as_good_goes_on_to_the_other_hosts(lab: Lab) -> None:
    lab.build("b4")
    done = lab.world.run(*lab.upgrade)
    assert "as good" in done.stdout and "same" in done.stdout
    assert lab.versions() == {"a": "b4", "b": "b4"}
    assert {row["host"] for row in lab.measured()} == {"a"}
    assert "nothing to change" in lab.world.run(*lab.upgrade).stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--golden-bench", "--install-only"], "not with --install-only"),
        (["--canary", "a"], "--canary goes with --golden-bench"),
        (["--golden-bench", "--canary", "z"], "is none of the hosts"),
        (["--golden-bench", "--threshold", "much"], "takes a percentage"),
        (["--golden-bench", "--threshold", "0"], "lies above 0 %"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(lab: Lab, more: list[str], said: str) -> None:
    command = ["backends", "upgrade", "llama.cpp", "--hosts", "a,b", "--version", "b9", "--engine-path", str(lab.real)]
    assert said in lab.world.run(*command, *more, "--yes", code=2).stderr
