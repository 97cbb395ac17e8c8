"""GetFacts: the probes' answers as one message."""

import dataclasses
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleet_agent.layout import Layout
from fleet_agent.leases.store import Lease
from fleet_agent.probes import PROBES
from fleet_agent.probes.model import NvidiaFacts, Outcome, Probe, ProbeContext, ProbeResult
from fleet_agent.probes.runner import ProbeRunner
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity, tree_members
from fleet_proto.v1 import hosts_pb2

_OUTCOMES = {
    Outcome.OK: hosts_pb2.PROBE_OUTCOME_OK,
    Outcome.NO_DATA: hosts_pb2.PROBE_OUTCOME_NO_DATA,
    Outcome.FAILED: hosts_pb2.PROBE_OUTCOME_FAILED,
    Outcome.TIMED_OUT: hosts_pb2.PROBE_OUTCOME_TIMED_OUT,
}


class FactsCalls:
    """The calls about the host itself. own_processes tells the roots of our services' and jobs' process trees, `leases`
    who measures now."""

    def __init__(
        self,
        context: ProbeContext,
        probes: Sequence[Probe] = PROBES,
        own_processes: Callable[[], Sequence[ProcessIdentity]] = tuple,
        leases: Callable[[], Sequence[Lease]] = tuple,
    ) -> None:
        self._context = context
        self._probes = {probe.name: probe for probe in probes}
        self._own_processes = own_processes
        self._leases = leases
        self._runner = ProbeRunner()

    async def GetFacts(self, request: hosts_pb2.GetFactsRequest, context: Any) -> hosts_pb2.HostFacts:
        wanted = list(request.probes) or list(self._probes)
        for name in wanted:
            if name not in self._probes:
                known = ", ".join(self._probes)
                raise ProblemError("unknown-probe", f"no probe {name!r}", f"known are {known}", "INVALID_ARGUMENT")
        chosen = [probe for name, probe in self._probes.items() if name in wanted]
        roots = self._own_processes()  # asked here, on the loop that owns the supervisors; the trees in the thread
        probe_context = dataclasses.replace(self._context, own_pids=lambda: _pids_of(roots))
        results = await self._runner.run(chosen, probe_context)
        message = facts_message(self._context.layout, results)
        for lease in self._leases():
            message.leases.add(
                gpu_indices=lease.gpu_indices,
                owner=lease.owner,
                title=lease.title,
                since_unix_ms=lease.since_unix_ms,
                paused_services=lease.paused_services,
            )
        return message


def _pids_of(roots: Sequence[ProcessIdentity]) -> frozenset[int]:
    return frozenset(member.pid for root in roots for member in tree_members(root))


def facts_message(layout: Layout, results: Sequence[ProbeResult]) -> hosts_pb2.HostFacts:
    """The message of these results; what a probe could not tell stays absent."""
    message = hosts_pb2.HostFacts(
        machine_id=layout.machine_id,
        hostname=socket.gethostname(),
        layout=_layout_message(layout),
        taken_unix_ms=int(time.time() * 1000),
    )
    for result in results:
        message.probes.add(
            name=result.name, seconds=result.seconds, outcome=_OUTCOMES[result.outcome], detail=result.detail
        )
        if result.facts is None:
            continue
        if isinstance(result.facts, NvidiaFacts):
            _fill(message.nvidia, result.facts.driver)
            _fill_all(message.gpus, result.facts.gpus)
        else:
            _put(message, result.name, result.facts)
    return message


def _layout_message(layout: Layout) -> hosts_pb2.HostLayout:
    return hosts_pb2.HostLayout(
        state_dir=str(layout.machine_dir),
        engines_dir=str(layout.engines_dir),
        hf_home=str(layout.hf_home),
        model_dir=str(layout.model_dir) if layout.model_dir else "",
        runtime_dir=str(layout.runtime_dir),
    )


# The field of HostFacts that a probe's facts go to, by the probe's name.
_FIELDS: Mapping[str, str] = {
    "system": "system",
    "cpu": "cpu",
    "memory": "memory",
    "disk": "disks",
    "apple": "apple",
    "engines": "engines",
    "tools": "tools",
}


def _put(message: hosts_pb2.HostFacts, probe_name: str, facts: Any) -> None:
    target = getattr(message, _FIELDS[probe_name])
    if isinstance(facts, tuple):
        _fill_all(target, facts)
    else:
        target.SetInParent()
        _fill(target, facts)


def _fill_all(target: Any, values: Sequence[Any]) -> None:
    for value in values:
        _fill(target.add(), value)


def _fill(target: Any, value: Any) -> None:
    """Copies a dataclass field by field: the names are the message's; None stays absent."""
    known = target.DESCRIPTOR.fields_by_name
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if content is None or field.name not in known:
            continue
        if isinstance(content, tuple):
            repeated = getattr(target, field.name)
            if content and dataclasses.is_dataclass(content[0]):
                _fill_all(repeated, content)
            else:
                repeated.extend(content)
        else:
            setattr(target, field.name, content)
