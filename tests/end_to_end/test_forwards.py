"""A model on a host's loopback, used from the user's machine: forward, endpoints, ps, and what a stop leaves alone."""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import yaml
from end_to_end.lab import Lab

from benchmarks.relay_network import run
from support.fleet_cli import eventually
from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]

MODEL = "tiny-chat"
FOREIGN_PORT = 8000  # one of those that are looked at; the lab's own services start at 8080


@pytest.fixture
def served(lab: Lab) -> Iterator[Lab]:
    """The model on gpu1 and gpu2; every forward is ended afterwards."""
    lab.publish(MODEL)
    lab.cli.ok(*lab.deploy_arguments(f"lab/{MODEL}", "gpu*"))
    yield lab
    lab.cli.ok("forward", "--stop", "--all")


def ask(base_url: str, key: str = "") -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "max_tokens": 16, "temperature": 0}
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"]).strip()


def forwards(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.cli.ok("forward", "--list", "--json").document["forwards"]
    return found


def test_a_forward_brings_the_first_ready_host_and_outlives_its_command(served: Lab) -> None:
    cli = served.cli
    started = cli.ok("forward", MODEL)
    url = started.output.strip()
    assert ask(url) == ANSWER
    assert f"{MODEL}@gpu1" in started.errors

    again = cli.ok("forward", MODEL)
    assert again.output.strip() == url
    assert "already" in again.errors
    assert len(forwards(served)) == 1

    other = cli.ok("forward", MODEL, "--hosts", "gpu2", "--json").document
    assert (other["host"], other["via"], other["changed"]) == ("gpu2", "forward", True)
    assert other["base_url"] != url
    assert ask(other["base_url"]) == ANSWER

    table = cli.ok("ps").output
    assert f"{url} (forward)" in table
    shown = {host["host"]: host["services"] for host in cli.ok("ps", "--json").document["hosts"]}
    assert shown["gpu1"][0]["forward"]["state"] == "up"
    assert shown["gpu2"][0]["addresses"] == [{"base_url": other["base_url"], "via": "forward"}]

    cli.ok("forward", "--stop", MODEL, "--hosts", "gpu2")
    assert [one["host"] for one in forwards(served)] == ["gpu1"]
    assert ask(url) == ANSWER
    cli.ok("forward", "--stop", MODEL)
    assert forwards(served) == []
    with pytest.raises(OSError, match="refused"):
        ask(url)


def test_endpoints_are_those_that_answer_from_here(served: Lab) -> None:
    cli = served.cli
    none = cli.ok("endpoints")
    assert f"fleet forward {MODEL} --hosts gpu1" in none.output
    assert "http://" not in none.output
    assert cli.run("endpoints", "--format", "litellm").code == 1
    assert cli.run("endpoints", "--format", "litellm").output == ""

    urls = [cli.ok("forward", MODEL, "--hosts", host).output.strip() for host in ("gpu1", "gpu2")]
    entries = yaml.safe_load(cli.ok("endpoints", "--format", "litellm").output)["model_list"]
    assert [entry["litellm_params"]["api_base"] for entry in entries] == urls
    assert {entry["model_name"] for entry in entries} == {MODEL}

    lines = cli.ok("endpoints", MODEL, "--format", "openai-env").output
    script = f'{lines}printf %s "$OPENAI_BASE_URL"'
    told = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout
    assert told == urls[0]
    assert ask(told) == ANSWER

    # A forward whose way is cut is no endpoint, whatever its file says.
    for one in forwards(served):
        if one["host"] == "gpu2":
            os.kill(one["pid"], signal.SIGKILL)
    document = cli.ok("endpoints", "--json").document
    assert [one["host"] for one in document["endpoints"]] == ["gpu1"]
    assert [(one["host"], one["base_url"]) for one in document["not_reachable"]] == [("gpu2", None)]
    assert "its process is gone" in cli.ok("ps").output


def test_ps_tells_that_the_model_moved_and_forward_follows_it(served: Lab) -> None:
    cli = served.cli
    url = cli.ok("forward", MODEL, "--hosts", "gpu1").output.strip()
    cli.ok(*served.deploy_arguments(f"lab/{MODEL}", "gpu1", "--port", "8177"))
    assert "moved to port 8177" in cli.ok("ps").output
    assert cli.ok("endpoints", "--hosts", "gpu1", "--json").document["endpoints"] == []

    followed = cli.ok("forward", MODEL, "--hosts", "gpu1", "--json").document
    assert followed["base_url"] == url, "clients keep the address they have"
    assert followed["forward"]["remote_port"] == 8177
    assert ask(url) == ANSWER

    cli.ok("stop", MODEL, "--hosts", "gpu1", "--yes")
    assert "is stopped there" in cli.ok("ps").output
    refused = cli.run("forward", MODEL, "--hosts", "gpu1")
    assert refused.code == 1
    assert "does not run" in refused.errors


def test_a_port_that_is_taken_is_wrong_usage_or_passed_over(served: Lab) -> None:
    port = served.ready("gpu1", MODEL)["spec"]["port"]
    with ExitStack() as stack:
        with suppress(OSError):  # somebody else has it: all the better
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        taken = served.cli.run("forward", MODEL, "--hosts", "gpu1", "--port", str(port))
        assert taken.code == 2
        assert f"port {port} is taken" in taken.errors
        assert forwards(served) == []
        started = served.cli.ok("forward", MODEL, "--hosts", "gpu1", "--json").document
        assert started["forward"]["local_port"] > port
        assert ask(started["base_url"]) == ANSWER
    other = served.cli.run("forward", MODEL, "--hosts", "gpu1", "--port", "18999")
    assert other.code == 2
    assert "forwarded already" in other.errors


def test_a_server_on_its_hosts_network_is_an_endpoint_by_itself_and_its_key_stays_where_it_is(served: Lab) -> None:
    cli, key = served.cli, secrets.token_hex(24)
    cli.ok(
        *served.deploy_arguments(f"lab/{MODEL}", "gpu1", "--bind", "0.0.0.0", "--api-key", "env:LAB_KEY"), LAB_KEY=key
    )
    address = f"http://{served.fleet.hosts['gpu1'].address}:{served.ready('gpu1', MODEL)['spec']['port']}/v1"
    direct = cli.ok("forward", MODEL, "--hosts", "gpu1")
    assert direct.output.strip() == address
    assert "needs no forward" in direct.errors
    assert forwards(served) == []

    [found] = cli.ok("endpoints", "--hosts", "gpu1", "--json").document["endpoints"]
    assert (found["base_url"], found["via"]) == (address, "network")
    assert (found["needs_key"], found["key_reference"]) == (True, "env:LAB_KEY")
    [entry] = yaml.safe_load(cli.ok("endpoints", "--hosts", "gpu1", "--format", "litellm").output)["model_list"]
    assert entry["litellm_params"]["api_key"] == "os.environ/LAB_KEY"

    lines = cli.ok("endpoints", MODEL, "--hosts", "gpu1", "--format", "openai-env").output
    assert key not in lines
    script = f'{lines}printf "%s %s" "$OPENAI_BASE_URL" "$OPENAI_API_KEY"'
    shell = subprocess.run(
        ["sh", "-ec", script], capture_output=True, text=True, check=True, env={"LAB_KEY": key, "PATH": "/usr/bin:/bin"}
    )
    base_url, told = shell.stdout.split()
    assert ask(base_url, told) == ANSWER
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(base_url)


def test_servers_of_others_are_shown_and_never_stopped(served: Lab) -> None:
    stranger = _start_stranger(served)
    try:
        shown = served.cli.ok("ps", "gpu2", "--json").document["hosts"][0]
        assert [one["port"] for one in shown["foreign"]] == [FOREIGN_PORT]
        table = served.cli.ok("ps", "gpu2").output
        assert any("foreign" in line and "their-model" in line for line in table.splitlines())
        assert "foreign" not in served.cli.ok("ps", "gpu2", "--quick").output

        refused = served.cli.run("stop", "their-model", "--yes")
        assert refused.code == 3
        assert "was not started by fleet" in refused.errors
        served.cli.ok("stop", "--all", "--yes")
        assert stranger.poll() is None
        assert f"127.0.0.1:{FOREIGN_PORT}" in _listening(served, "gpu2")
    finally:
        stranger.kill()
        stranger.wait()


def _start_stranger(lab: Lab) -> "subprocess.Popen[bytes]":
    """A llama-server that somebody started by hand on gpu2."""
    command = [
        str(lab.engine / "llama-server"), "--model", str(lab.model.gguf_path), "--alias", "their-model",
        "--host", "127.0.0.1", "--port", str(FOREIGN_PORT), "-c", "512",
    ]  # fmt: skip
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.fleet.hosts["gpu2"].namespace, "/bin/sh", "-c", f"exec {shlex.join(command)}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    eventually(lambda: f"127.0.0.1:{FOREIGN_PORT}" in _listening(lab, "gpu2"), "the stranger's server listens")
    health = ["python3", "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/health').status)"]
    eventually(lambda: "200" in lab.fleet.sh("gpu2", shlex.join(health), check=False), "the stranger's model is loaded")
    return server


def _listening(lab: Lab, host: str) -> str:
    return run("ip", "netns", "exec", lab.fleet.hosts[host].namespace, "ss", "-ltnH")
