"""What `fleet hosts` does."""

import time
from typing import Any

import typer

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import SOME_HOST_FAILED, report
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import GREEN, RED, YELLOW, duration, gibibytes, print_json, print_table
from fleet_proto.v1 import controller_pb2, hosts_pb2, services_pb2

COLUMNS = ("HOST", "STATE", "SYSTEM", "PROCESSOR", "MEMORY FREE", "MODELS", "AGENT", "TOOK")
STATE_STYLES = {"up": GREEN, "no-agent": YELLOW, "unreachable": RED, "refused": RED}


def run_hosts(pattern: str, as_json: bool, cached: bool) -> None:
    """Print the hosts; exit code 1 where one of them did not answer."""
    reports = call(fetch_reports(pattern, refresh=not cached))
    if as_json:
        print_json({"hosts": [plain(host) for host in reports]})
    else:
        columns = COLUMNS if not cached else (*COLUMNS[:-1], "AGE")
        print_table(columns, [_row(host, cached) for host in reports], STATE_STYLES)
        for host in reports:
            if host.HasField("problem"):
                report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if any(host.HasField("problem") for host in reports):
        raise typer.Exit(SOME_HOST_FAILED)


async def fetch_reports(pattern: str, refresh: bool) -> list[controller_pb2.HostReport]:
    """One report per host, by name."""
    request = controller_pb2.GetHostsRequest(pattern=pattern, refresh=refresh)
    async with connected_controller() as controller:
        reports = [host async for host in controller.GetHosts(request)]
    return sorted(reports, key=lambda host: host.host)


def _row(host: controller_pb2.HostReport, cached: bool) -> tuple[str, ...]:
    facts = host.facts
    known = host.HasField("facts")
    took = f"{host.seconds:.1f} s"
    if cached:
        took = duration(time.time() - facts.taken_unix_ms / 1000) if known and facts.taken_unix_ms else "never"
    return (
        host.host,
        word_of(host, "connection") if host.connection else "-",
        _system(facts) if known else "-",
        processor(facts) if known else "-",
        _memory(facts) if known else "-",
        _models(host.services) or "-",
        host.agent_version or "-",
        took,
    )


def _system(facts: hosts_pb2.HostFacts) -> str:
    return f"{facts.system.os_name or facts.system.os} {facts.system.architecture}".strip() or "?"


def processor(facts: hosts_pb2.HostFacts) -> str:
    """What a model runs on: the GPUs, the Apple chip, or the CPU."""
    if facts.gpus:
        names: dict[str, int] = {}
        for gpu in facts.gpus:
            name = gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
            names[name] = names.get(name, 0) + 1
        return " + ".join(f"{count}x {name}" if count > 1 else name for name, count in names.items())
    if facts.HasField("apple") and facts.apple.chip:
        cores = f", {facts.apple.gpu_cores} GPU cores" if facts.apple.HasField("gpu_cores") else ""
        return facts.apple.chip + cores
    cores = f", {facts.cpu.logical_cores} threads" if facts.cpu.HasField("logical_cores") else ""
    return (facts.cpu.model or "CPU")[:32] + cores


def _memory(facts: hosts_pb2.HostFacts) -> str:
    """Where a model would go: "21.5 GiB of 24.0 GiB VRAM"."""
    if facts.gpus:
        kind, free = "VRAM", _sum([_optional(gpu, "memory_free_bytes") for gpu in facts.gpus])
        total = _sum([_optional(gpu, "memory_total_bytes") for gpu in facts.gpus])
    else:
        kind = "unified" if facts.HasField("apple") else "RAM"
        free, total = _optional(facts.memory, "available_bytes"), _optional(facts.memory, "total_bytes")
    return f"{gibibytes(free)} of {gibibytes(total)} {kind}"


def _optional(message: Any, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _models(services: Any) -> str:
    running = [service for service in services if service.state != services_pb2.SERVICE_STATE_STOPPED]
    return ", ".join(
        service.spec.name
        + ("" if service.state == services_pb2.SERVICE_STATE_READY else f" ({word_of(service, 'state')})")
        for service in running
    )
