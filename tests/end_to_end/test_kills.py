"""kill -9 of agent, runner, model server and controller, at each stage: nothing is lost, and nothing done twice."""

import json
from collections.abc import Iterator

import pytest
from end_to_end.lab import HELD_BYTES, Lab, kill, one

from support.fleet_cli import eventually
from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]

# Of the rest of a file that its second reader gets before it is held, too.
HELD_AGAIN_BYTES = 1 << 16


@pytest.fixture
def controller(lab: Lab) -> Iterator[int]:
    """The pid of a resident controller."""
    yield int(lab.cli.ok("controller", "start", "--json").document["pid"])
    lab.cli.run("controller", "stop")


def assert_done_once(lab: Lab, host: str, name: str) -> None:
    """Each piece of work was done by one attempt, no history has a gap, and one server answers."""
    done: list[str] = []
    for folder in (lab.machine_dir(host) / "jobs").glob(f"deploy-{name}-*"):
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert [event["state"] for event in events if event.get("state")][-1] == "JOB_STATE_SUCCEEDED"
        started = ""
        for event in events:
            started = event.get("step_started") or started
            if event.get("result") and json.loads(event["result"]["json"]).get("changed"):
                done.append(started)
    assert f"fetch lab/{name}" in done
    assert len(done) == len(set(done)), done
    assert not lab.runners(host)
    assert len(lab.servers(host, name)) == 1
    assert lab.chat(host, name) == ANSWER


def test_agent_killed_while_downloading(lab: Lab) -> None:
    """The runner goes on without it, the command starts it again, and the stream resumes."""
    lab.publish("cut-agent")
    lab.hold_downloads()
    command = lab.cli.start(*lab.deploy_arguments("lab/cut-agent", "gpu1"))
    lab.wait_for_part("gpu1", "cut-agent", HELD_BYTES)
    runner, agent = one(lab.runners("gpu1")), one(lab.agents("gpu1"))
    kill(agent)
    successor = one(eventually(lambda: lab.agents("gpu1"), "the command starts the agent again"))
    assert successor != agent
    assert lab.runners("gpu1") == [runner]
    lab.release_downloads()

    finished = command.finish()
    assert finished.code == 0, str(finished)
    assert lab.downloaded("cut-agent") == [(0, lab.model_bytes)]
    assert_done_once(lab, "gpu1", "cut-agent")


def test_runner_killed_while_downloading(lab: Lab) -> None:
    """The agent gives the job a new runner, which goes on at the byte where the dead one was."""
    lab.publish("cut-runner")
    lab.hold_downloads()
    command = lab.cli.start(*lab.deploy_arguments("lab/cut-runner", "gpu1"))
    part = lab.wait_for_part("gpu1", "cut-runner", HELD_BYTES)
    present = part.stat().st_size
    runner = one(lab.runners("gpu1"))
    lab.hold_downloads(HELD_AGAIN_BYTES)
    kill(runner)
    eventually(lambda: len(lab.downloaded("cut-runner")) == 2, "a new runner asks the hub for the rest")
    assert one(lab.runners("gpu1")) != runner
    lab.release_downloads()

    finished = command.finish()
    assert finished.code == 0, str(finished)
    assert lab.downloaded("cut-runner")[1] == (present, lab.model_bytes)
    assert_done_once(lab, "gpu1", "cut-runner")


def test_controller_killed_while_downloading(lab: Lab, controller: int) -> None:
    """The command says what to do; the host works on meanwhile, and the same command joins it."""
    lab.publish("cut-controller")
    lab.hold_downloads()
    command = lab.cli.start(*lab.deploy_arguments("lab/cut-controller", "gpu1"))
    lab.wait_for_part("gpu1", "cut-controller", HELD_BYTES)
    runner = one(lab.runners("gpu1"))
    kill(controller)
    finished = command.finish()
    assert finished.code == 1, str(finished)
    assert "repeat the same command" in finished.errors
    assert lab.runners("gpu1") == [runner]

    again = lab.cli.start(*lab.deploy_arguments("lab/cut-controller", "gpu1"))
    eventually(lambda: "joining" in again.said, "the second command finds the work of the first")
    lab.release_downloads()
    finished = again.finish()
    assert finished.code == 0, str(finished)
    assert lab.downloaded("cut-controller") == [(0, lab.model_bytes)]
    assert_done_once(lab, "gpu1", "cut-controller")


@pytest.mark.mlx
def test_all_three_killed_in_turn_while_installing(lab: Lab, controller: int) -> None:
    """MLX-LM's environment: the half-made one is dropped, what the dead runner started ends, one whole one remains."""
    lab.publish_folder("cut-install")
    lab.index.hold("mlx-lm")
    arguments = ("deploy", "--repo", "lab/cut-install", "--hosts", "mac1", "--backend", "mlx-lm", "--yes")
    engines = lab.machine_dir("mac1") / "engines"
    for path in engines.glob("mlx-lm-*"):  # another test may have installed it
        lab.fleet.sh("mac1", f"rm -rf {path}")
    command = lab.cli.start(*arguments)
    lab.index.wait_until_asked("mlx-lm", 1)

    asked, runner, installer = lab.index.asked("mlx-lm"), one(lab.runners("mac1")), lab.processes("mac1", "pip install")
    kill(runner)
    lab.index.wait_until_asked("mlx-lm", asked + 1)
    assert one(lab.runners("mac1")) != runner
    assert not set(installer) & set(lab.processes("mac1", "pip install"))

    agent = one(lab.agents("mac1"))
    kill(agent)
    assert one(eventually(lambda: lab.agents("mac1"), "the controller starts the agent again")) != agent

    kill(controller)
    assert command.finish().code == 1
    again = lab.cli.start(*arguments)
    eventually(lambda: "joining" in again.said, "the second command finds the work of the first")
    lab.index.release()
    finished = again.finish()
    assert finished.code == 0, str(finished)
    (installed,) = [path.name for path in engines.glob("mlx-lm-*") if path.is_dir()]
    assert not installed.endswith(".tmp")
    assert not lab.processes("mac1", "pip install")
    assert_done_once(lab, "mac1", "cut-install")


def test_each_killed_while_serving(lab: Lab, controller: int) -> None:
    lab.publish("served")
    lab.cli.ok(*lab.deploy_arguments("lab/served", "gpu2"))
    first = lab.ready("gpu2", "served")
    endpoint = f"http://{first['spec']['bind_address']}:{first['spec']['port']}/v1"
    model = first["spec"]["served_model_name"]

    server = one(lab.servers("gpu2", "served"))
    kill(server)
    successor = one(eventually(lambda: lab.servers("gpu2", "served"), "the agent starts the server again"))
    assert successor != server
    assert lab.chat("gpu2", "served") == ANSWER
    restarts = lab.ready("gpu2", "served")["restarts"]
    assert restarts == 1

    agent = one(lab.agents("gpu2"))
    kill(agent)
    assert lab.ask("gpu2", endpoint, model) == ANSWER  # nobody is needed for that
    lab.ready("gpu2", "served")  # this contact starts the agent again
    assert one(lab.agents("gpu2")) != agent
    assert one(lab.servers("gpu2", "served")) == successor

    kill(controller)
    assert lab.ready("gpu2", "served")["restarts"] == restarts
    assert one(lab.servers("gpu2", "served")) == successor

    kill(one(lab.agents("gpu2")))
    kill(successor)
    assert lab.ready("gpu2", "served")["restarts"] == restarts + 1
    assert one(lab.servers("gpu2", "served")) != successor
    assert lab.chat("gpu2", "served") == ANSWER


def test_a_host_reboots_in_the_middle_of_a_download(lab: Lab) -> None:
    """Everything of it dies at once. When its agent is started, services and unfinished work come back."""
    lab.publish("resident")
    lab.publish("arriving")
    lab.cli.ok(*lab.deploy_arguments("lab/resident", "gpu2"))
    lab.hold_downloads()
    command = lab.cli.start(*lab.deploy_arguments("lab/arriving", "gpu2"))
    part = lab.wait_for_part("gpu2", "arriving", HELD_BYTES)
    present = part.stat().st_size

    lab.fleet.kill_everything("gpu2")
    assert not lab.fleet.pids("gpu2")
    assert command.process.poll() is None
    lab.release_downloads()
    lab.fleet.start_sshd("gpu2")

    finished = command.finish()  # it waits for the host, finds it again, and starts its agent
    assert finished.code == 0, str(finished)
    assert lab.downloaded("arriving")[1] == (present, lab.model_bytes)
    assert_done_once(lab, "gpu2", "arriving")
    assert lab.chat("gpu2", "resident") == ANSWER
    one(lab.servers("gpu2", "resident"))
