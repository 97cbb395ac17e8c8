"""What `fleet doctor` says about a host, from its report alone."""

from fleet_controller.domain.base import Problem
from fleet_controller.domain.facts import DiskFacts, GpuFacts, GpuProcess, HostFacts, HostLayout, SystemFacts
from fleet_controller.operations.checks import Check, check_host
from fleet_controller.operations.reports import HostConnection, HostReport

LAYOUT = HostLayout(state_dir="/s", engines_dir="/e", hf_home="/h")


def checks(facts: HostFacts) -> dict[str, Check]:
    report = HostReport(host="gpu1", connection=HostConnection.UP, facts=facts, agent_version="1", transport="ssh")
    return {check.name: check for check in check_host(report, "1")}


def test_a_home_on_the_network_is_noticed_with_its_file_system() -> None:
    home = DiskFacts(purpose="home", path="/home/lab", free_bytes=10**12, filesystem="nfs4", writable=True)
    found = checks(HostFacts(layout=LAYOUT, system=SystemFacts(home_is_network=True), disks=(home,)))["home"]
    assert found.state == "warning"
    assert "nfs4" in found.detail
    assert "agent_root" in found.remedy


def test_a_folder_that_cannot_be_written_fails_and_a_full_disk_warns() -> None:
    read_only = DiskFacts(purpose="models", path="/m", free_bytes=10**12, writable=False)
    full = DiskFacts(purpose="engines", path="/e", free_bytes=10**9, writable=True)
    found = checks(HostFacts(layout=LAYOUT, disks=(read_only, full)))
    assert found["disk models"].failed
    assert found["disk engines"].state == "warning"


def test_a_gpu_in_use_names_who_uses_it() -> None:
    gpu = GpuFacts(index=0, name="RTX 4090", processes=(GpuProcess(pid=7, user="alice", command="python"),))
    found = checks(HostFacts(layout=LAYOUT, gpus=(gpu,)))["gpu 0"]
    assert found.state == "warning"
    assert "alice" in found.detail


def test_a_desktop_does_not_occupy_a_gpu() -> None:
    desktop = GpuProcess(pid=7, user="alice", command="Xorg", compute=False)
    gpu = GpuFacts(index=0, name="RTX 4090", processes=(desktop,))
    assert checks(HostFacts(layout=LAYOUT, gpus=(gpu,)))["gpu 0"].state == "ok"


def test_a_host_that_does_not_answer_is_one_failed_check_with_its_way_out() -> None:
    problem = Problem(code="no-agent", message="no agent is installed", remedy="fleet up gpu1")
    report = HostReport(host="gpu1", connection=HostConnection.NO_AGENT, problem=problem)
    [found] = check_host(report, "1")
    assert (found.failed, found.remedy) == (True, "fleet up gpu1")


def test_an_agent_of_another_version_is_a_warning_that_names_the_upgrade() -> None:
    report = HostReport(host="gpu1", facts=HostFacts(layout=LAYOUT), agent_version="0")
    found = {check.name: check for check in check_host(report, "1")}
    assert "fleet agent upgrade gpu1" in found["agent"].remedy
