"""What `fleet doctor` looks at on a host: pure, from the host's report."""

from dataclasses import dataclass

from fleet_controller.domain.facts import DiskFacts, HostFacts, ProbeOutcome
from fleet_controller.domain.services import DesiredState, ServiceState
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.operations.reports import HostReport
from fleet_controller.planning.devices import foreign_processes

LEAST_FREE_BYTES = 10 * 1000**3


@dataclass(frozen=True)
class Check:
    """One check: `state` is "ok", "warning" or "failed"; `remedy` is what to do where it is not ok."""

    name: str
    state: str
    detail: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        return self.state == "failed"


def check_host(report: HostReport, our_version: str) -> list[Check]:
    """All checks of one host, in the order in which a person would look."""
    if report.problem is not None or report.facts is None:
        message = report.problem.message if report.problem else "it told nothing about itself"
        remedy = report.problem.remedy if report.problem else f"run: fleet up {report.host}"
        return [Check("connection", "failed", message, remedy or f"run: fleet up {report.host}")]
    facts = report.facts
    return [
        Check("connection", "ok", f"{report.transport}, {report.seconds:.1f} s"),
        _version(report, our_version),
        _home(facts),
        *_probes(facts),
        *(_disk(disk) for disk in facts.disks),
        *_accelerator(facts),
        *_services(report),
    ]


def _version(report: HostReport, ours: str) -> Check:
    theirs = report.agent_version or "unknown"
    if theirs == ours:
        return Check("agent", "ok", theirs)
    return Check("agent", "warning", f"agent {theirs}, this fleet {ours}", f"run: fleet agent upgrade {report.host}")


def _home(facts: HostFacts) -> Check:
    """Homes on the network are supported; a person should know, since hosts then share the model cache."""
    if facts.system.home_is_network is None:
        return Check("home", "ok", "not known whether it is on the network")
    if not facts.system.home_is_network:
        return Check("home", "ok", "on a local disk")
    filesystem = next(
        (disk.filesystem for disk in facts.disks if disk.purpose == "home" and disk.filesystem), "network"
    )
    return Check(
        "home",
        "warning",
        f"on a network file system ({filesystem}): state is kept per machine, engines and models load over the network",
        "set agent_root, and HF_HOME under environment, to a local disk for this host in hosts.yaml",
    )


def _probes(facts: HostFacts) -> list[Check]:
    bad = (ProbeOutcome.FAILED, ProbeOutcome.TIMED_OUT)
    found = [
        Check(f"probe {probe.name}", "warning", probe.detail or probe.outcome.value, "see the agent's log on the host")
        for probe in facts.probes
        if probe.outcome in bad
    ]
    return found or [Check("probes", "ok", f"{len(facts.probes)} ran")]


def _disk(disk: DiskFacts) -> Check:
    name = f"disk {disk.purpose}"
    if disk.writable is False:
        return Check(
            name, "failed", f"{disk.path} cannot be written", f"make {disk.path} writable for the agent's user"
        )
    if disk.free_bytes is None:
        return Check(name, "warning", f"free space of {disk.path} is not known", f"look at {disk.path} on the host")
    free = f"{gibibytes(disk.free_bytes)} free in {disk.path}"
    if disk.free_bytes < LEAST_FREE_BYTES:
        return Check(name, "warning", free, "free some space, or move the folder in hosts.yaml")
    return Check(name, "ok", free)


def _accelerator(facts: HostFacts) -> list[Check]:
    found = []
    for gpu in facts.gpus:
        name = f"gpu {gpu.index}"
        foreign = foreign_processes((gpu,))
        hot = [reason for reason in gpu.throttle_reasons if "thermal" in reason or "brake" in reason]
        if foreign:
            who = ", ".join(f"{process.user or '?'} ({process.command or '?'})" for process in foreign)
            found.append(Check(name, "warning", f"{gpu.name} is in use by {who}", "deploys there wait or are refused"))
        elif hot:
            found.append(Check(name, "warning", f"{gpu.name} throttles: {', '.join(hot)}", "look at its cooling"))
        else:
            found.append(Check(name, "ok", gpu.name))
    if facts.nvidia is None and any(
        probe.name == "nvidia" and probe.outcome is ProbeOutcome.FAILED for probe in facts.probes
    ):
        found.append(Check("nvidia", "failed", "the NVIDIA driver does not answer", "run nvidia-smi on the host"))
    return found


def _services(report: HostReport) -> list[Check]:
    found = []
    for status in report.services:
        name = f"model {status.spec.name}"
        if status.desired is not DesiredState.RUNNING:
            continue
        if status.state in (ServiceState.READY, ServiceState.STARTING):
            found.append(Check(name, "ok", status.state.value.removeprefix("SERVICE_STATE_").lower()))
        else:
            said = (
                status.problem.message if status.problem else status.state.value.removeprefix("SERVICE_STATE_").lower()
            )
            remedy = (
                status.problem.remedy if status.problem else ""
            ) or f"fleet logs {status.spec.name} -H {report.host}"
            found.append(Check(name, "failed", said, remedy))
    return found
