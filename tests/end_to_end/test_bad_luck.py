"""What a lab does to its machines: cut links, full disks, read-only folders, taken ports, recycled pids, lost hosts."""

import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from end_to_end.lab import HELD_BYTES, Lab, controller_address, downloaded, kill, one

from support.fleet_cli import FleetCli, eventually
from support.namespaces import HostOptions, namespace_fleet
from support.stand_in_hub import StandInHub
from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp, pytest.mark.slow]


def test_a_link_is_cut_in_mid_job_and_restored(lab: Lab) -> None:
    """SSH and the download both lose their connection; both go on where they were."""
    lab.publish("cut-link")
    lab.hold_downloads()
    command = lab.cli.start(*lab.deploy_arguments("lab/cut-link", "gpu1"))
    lab.wait_for_part("gpu1", "cut-link", HELD_BYTES)
    runner = one(lab.runners("gpu1"))
    lab.fleet.link_down("gpu1")
    sessions = lab.processes("gpu1", "sshd:", lab.fleet.hosts["gpu1"].user)
    kill(*sessions)  # a long cut: both ends have given the connection up
    assert command.process.poll() is None
    assert lab.runners("gpu1") == [runner]
    lab.fleet.link_up("gpu1")
    lab.release_downloads()

    finished = command.finish()
    assert finished.code == 0, str(finished)
    ranges = lab.downloaded("cut-link")
    assert ranges[-1][1] == lab.model_bytes
    assert all(start >= HELD_BYTES for start, _ in ranges[1:])  # nothing began at zero again
    assert lab.chat("gpu1", "cut-link") == ANSWER
    one(lab.servers("gpu1", "cut-link"))


def test_one_host_down_blocks_no_other(lab: Lab) -> None:
    lab.publish("beside")
    lab.fleet.link_down("gpu2")
    command = lab.cli.start(*lab.deploy_arguments("lab/beside", "gpu1,gpu2", "--json"))
    listing = lab.cli.run("hosts", "gpu1,gpu2", "--json")
    assert listing.code == 1, str(listing)
    reports = {host["host"]: host for host in listing.document["hosts"]}
    assert reports["gpu1"]["connection"] == "up"
    assert reports["gpu2"]["connection"] == "unreachable"
    assert reports["gpu2"]["problem"]["message"]

    finished = command.finish()
    assert finished.code == 1, str(finished)
    plans = {host["host"]: host for host in finished.document["plan"]}
    assert plans["gpu2"]["problem"]["message"]
    (result,) = [host["result"] for host in finished.document["hosts"] if host["ok"]]
    assert lab.ask("gpu1", result["endpoint"], result["model"]) == ANSWER


@contextmanager
def small_disk(lab: Lab, host: str, size_bytes: int) -> Iterator[Path]:
    """The host's Hugging Face cache on a disk of its own, and empty."""
    cache = lab.fleet.hosts[host].home / ".cache" / "huggingface"
    uid = lab.fleet.uid(host)
    lab.fleet.sh(host, f"mkdir -p {shlex.quote(str(cache))}")
    lab.mount(host, "-t", "tmpfs", "-o", f"size={size_bytes},uid={uid},mode=700", "none", str(cache))
    try:
        yield cache
    finally:
        lab.cli.run("stop", "--all", "--remove", "--hosts", host, "--yes")
        lab.unmount(host, cache)


def test_a_disk_that_is_too_small_is_refused_before_any_download(lab: Lab) -> None:
    lab.publish("too-big")
    with small_disk(lab, "gpu2", lab.model_bytes // 2):
        finished = lab.cli.run(*lab.deploy_arguments("lab/too-big", "gpu2"))
    assert finished.code == 3, str(finished)
    assert "free" in finished.said
    assert "huggingface" in finished.said
    assert not lab.downloaded("too-big")


def test_a_disk_that_fills_up_keeps_what_came_and_goes_on_later(lab: Lab) -> None:
    lab.publish("fills-up")
    with small_disk(lab, "gpu2", lab.model_bytes + HELD_BYTES) as cache:
        lab.hold_downloads()
        command = lab.cli.start(*lab.deploy_arguments("lab/fills-up", "gpu2"))
        lab.wait_until_held("fills-up")
        sshd = lab.fleet.hosts["gpu2"].sshd
        assert sshd is not None
        inside = ["nsenter", "-t", str(sshd.pid), "-m"]
        filler = cache / "somebody-elses"
        subprocess.run([*inside, "dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True, check=False)
        lab.release_downloads()
        finished = command.finish()
        assert finished.code == 1, str(finished)
        assert "disk" in finished.errors
        assert "free" in finished.errors

        subprocess.run([*inside, "rm", str(filler)], check=True)
        lab.cli.ok(*lab.deploy_arguments("lab/fills-up", "gpu2"))
        assert lab.downloaded("fills-up")[-1][0] >= HELD_BYTES
        assert lab.chat("gpu2", "fills-up") == ANSWER


def test_a_read_only_model_folder(lab: Lab) -> None:
    """What is in it can be served; what is not is one clear error."""
    lab.publish("present")
    lab.publish("absent")
    with small_disk(lab, "gpu2", 4 * lab.model_bytes) as cache:
        lab.cli.ok(*lab.deploy_arguments("lab/present", "gpu2"))
        lab.cli.ok("stop", "present", "--remove", "--yes")
        lab.mount("gpu2", "-o", "remount,ro", str(cache))
        lab.cli.ok(*lab.deploy_arguments("lab/present", "gpu2"))
        assert lab.chat("gpu2", "present") == ANSWER

        finished = lab.cli.run(*lab.deploy_arguments("lab/absent", "gpu2"))
    assert finished.code == 1, str(finished)
    assert "cannot write in" in finished.errors
    assert "next: " in finished.errors
    assert not lab.downloaded("absent")


def test_a_port_that_is_taken(lab: Lab) -> None:
    """A stranger keeps his port, asked for or the default; another one is named as the way out."""
    lab.publish("ports")
    default = lab.cli.ok(*lab.deploy_arguments("lab/ports", "gpu1", "--dry-run", "--json")).document["plan"][0]["port"]
    script = f"exec python3 -m http.server --bind 127.0.0.1 {default}"
    namespace = lab.fleet.hosts["gpu1"].namespace
    stranger = subprocess.Popen(
        ["ip", "netns", "exec", namespace, "sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: f":{default} " in lab.fleet.sh("gpu1", "ss -ltnH"), "the stranger listens")
        for arguments in ((), ("--port", str(default))):
            finished = lab.cli.run(*lab.deploy_arguments("lab/ports", "gpu1", *arguments))
            assert finished.code == 1, str(finished)
            assert f"port {default} of 127.0.0.1 is taken" in finished.errors
            assert "--port N" in finished.errors
        assert not lab.servers("gpu1", "ports")

        lab.cli.ok(*lab.deploy_arguments("lab/ports", "gpu1", "--port", str(default + 1)))
        assert lab.chat("gpu1", "ports") == ANSWER
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_foreign_process_with_a_recycled_pid_is_never_signalled(lab: Lab) -> None:
    """Agent and server died with the power; their pids belong to somebody else when the agent starts."""
    lab.publish("recycled")
    lab.cli.ok(*lab.deploy_arguments("lab/recycled", "gpu2"))
    server, agent = one(lab.servers("gpu2", "recycled")), one(lab.agents("gpu2"))
    kill(agent, server)
    lab.fleet.sh("gpu2", "setsid sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 &")
    strangers = eventually(lambda: lab.processes("gpu2", "sleep 1000"), "the strangers run")
    try:
        journal = lab.machine_dir("gpu2") / "services" / "recycled.json"
        record = json.loads(journal.read_text())
        assert record["process"]["pid"] == server
        record["process"]["pid"] = strangers[0]
        journal.write_text(json.dumps(record))
        pid_file = lab.machine_dir("gpu2") / "agent" / "agent.pid"
        _, started = pid_file.read_text().split()
        pid_file.write_text(f"{strangers[-1]}\n{started}\n")

        successor = lab.ready("gpu2", "recycled")["process"]["pid"]
        assert successor not in strangers
        lab.cli.ok("stop", "recycled", "--hosts", "gpu2", "--yes")
        lab.cli.ok("agent", "restart", "gpu2", "--yes")
        assert lab.processes("gpu2", "sleep 1000") == strangers
    finally:
        kill(*strangers)


def test_two_hosts_that_share_one_home(lab: Lab) -> None:
    """State is kept per machine; the model's bytes, which both see, are fetched once."""
    lab.publish("shared")
    folder = Path(tempfile.mkdtemp(prefix="fleet-e2e-"))
    shared = Path(tempfile.mkdtemp(prefix="fleet-home-", dir="/var/tmp"))
    shared.chmod(0o755)
    options = HostOptions(home=shared / "home", user=f"fltshared{lab.fleet.id}")
    try:
        with namespace_fleet(["desk", "rack"], {"desk": options, "rack": options}) as fleet:
            fleet.trust()
            cli = FleetCli(folder, fleet.ssh_config)
            with StandInHub(lab.hub.root, controller_address(fleet)) as hub:
                cli.write_hosts({"desk": {}, "rack": {}}, environment={"HF_ENDPOINT": hub.url})
                try:
                    cli.ok("up", "all", "--yes", "--wheels", str(lab.wheels))
                    _deploy_on_both(lab, cli, hub, shared / "home")
                finally:
                    cli.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(shared, ignore_errors=True)


def _deploy_on_both(lab: Lab, cli: FleetCli, hub: StandInHub, home: Path) -> None:
    document = cli.ok(*lab.deploy_arguments("lab/shared", "all", "--json")).document
    assert {host["host"]: host["result"]["answer"] for host in document["hosts"]} == {"desk": ANSWER, "rack": ANSWER}
    assert sum(end - start for start, end in downloaded(hub, "shared")) == lab.model_bytes
    machines = sorted((home / ".local/share/fleet/machines").iterdir())
    assert len(machines) == 2
    assert all((machine / "services" / "shared.json").is_file() for machine in machines)
    assert not list(home.rglob("*.sock"))

    cli.ok("stop", "shared", "--hosts", "desk", "--yes")
    states = {host["host"]: host["services"][0]["state"] for host in cli.ok("ps", "--json").document["hosts"]}
    assert states == {"desk": "stopped", "rack": "ready"}
