"""The agents' own memory while their hosts relay a model: python -m benchmarks.relay_agent_memory [--megabits 80]

Two real agents in folders of their own, over the loopback. Each is given a relay as a step of a job, as `fleet pull`
does; the first has the files in a folder, the second gets them from the first, with mutual TLS. What is read is the
resident memory of each agent's server process alone, before, while the bytes move (the most, five times a second) and
after; beside it that of the job's own processes, the runner and the relay, which end with the pull. `private` is what
a process shares with no other (VmRSS less the pages of files): what a leak would be seen in.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import psutil

from benchmarks.agent_idle import agent_environment, agent_socket, ask_facts
from benchmarks.measure import report
from benchmarks.relay_content import make_content, make_manifest
from benchmarks.relay_control import LabController
from benchmarks.relay_lab import RelayLab, relay_lab
from benchmarks.relay_process import Told
from fleet_agent.relay.control import EVENTS, Event, RelaySpec, parse_event
from fleet_controller.distributing.messages import FolderSource
from fleet_controller.distributing.model import Member
from fleet_controller.domain.steps import ArtifactFile, JobSpec, RelayStep, Step
from fleet_controller.wire import to_wire
from fleet_proto.v1 import jobs_pb2
from fleet_proto.v1.agent_pb2_grpc import AgentStub

NAMES = ("first", "second")
JOB = "pull"
START_SECONDS = 60.0
LIMIT_SECONDS = 480.0
SAMPLE_SECONDS = 0.2
SETTLE_SECONDS = 3.0  # a server that has just answered has not yet given back what it answered with


@dataclass(frozen=True)
class Memory:
    """Bytes. resident: with the pages of libraries, shared with other processes; private: without."""

    resident: int
    private: int


def memory_of(process: psutil.Process) -> Memory:
    info = process.memory_info()
    return Memory(info.rss, info.rss - info.shared)


class AgentRelay(Told):
    """A relay that an agent runs: orders go through SteerJob, what it tells comes through WatchJob."""

    def __init__(
        self, spec: RelaySpec, folder: Path, prefix: Sequence[str], plain: bool, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(spec, folder, prefix, plain, on_event)
        (folder / "home").mkdir()
        environment = agent_environment(folder) | {"HF_HOME": spec.hf_home, "FLEET_MACHINE_ID": spec.node}
        self._server = subprocess.Popen([sys.executable, "-m", "fleet_agent", "serve"], env=environment)
        self._channel = grpc.insecure_channel(f"unix:{agent_socket(environment)}")
        grpc.channel_ready_future(self._channel).result(timeout=START_SECONDS)
        self._stub = AgentStub(self._channel)
        ask_facts(agent_socket(environment))
        self.process = psutil.Process(self._server.pid)
        self._watch: threading.Thread | None = None

    def begin(self) -> None:
        """The relay itself, as a job; it listens once it was given its certificates."""
        spec, manifest = self.spec, self.spec.manifest
        files = tuple(ArtifactFile.model_validate(asdict(file)) for file in manifest.files)
        step = RelayStep(
            rollout=spec.rollout, node=spec.node, allowed=spec.allowed, repository=manifest.repository,
            commit=manifest.commit, revision=manifest.revision, files=files, piece_bytes=manifest.piece_bytes,
            listen_host=spec.listen_host, upload_bytes_per_second=spec.upload_bytes_per_second,
        )  # fmt: skip
        job = JobSpec(job_id=JOB, title=JOB, steps=(Step(name=JOB, relay=step),))
        self._stub.SubmitJob(jobs_pb2.SubmitJobRequest(spec=to_wire(job, jobs_pb2.JobSpec)))
        assert spec.tls is not None
        pem = [Path(path).read_text() for path in (spec.tls.ca, spec.tls.certificate, spec.tls.key)]
        credentials = jobs_pb2.JobCredentials(authority=pem[0], certificate=pem[1], key=pem[2])
        self._stub.SteerJob(jobs_pb2.SteerJobRequest(job_id=JOB, credentials=credentials))
        self._watch = threading.Thread(target=self._read, daemon=True)
        self._watch.start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for event in self._stub.WatchJob(jobs_pb2.WatchJobRequest(job_id=JOB)):
                if event.HasField("problem"):
                    print(f"{self.spec.node}: {event.problem.message}", file=sys.stderr)
                if event.document and json.loads(event.document).get("event") in EVENTS:
                    self._hear(parse_event(event.document))
        self._hear_the_end()

    def send(self, line: str) -> None:
        self._stub.SteerJob(jobs_pb2.SteerJobRequest(job_id=JOB, document=line))

    def stop_job(self) -> None:
        self.send(json.dumps({"order": "stop"}))
        assert self._watch is not None
        self._watch.join(START_SECONDS)

    def ask_to_stop(self) -> None:
        self._channel.close()
        self._server.terminate()

    def end(self, seconds: float = 30.0) -> int:
        return self._server.wait(seconds)


class Meter:
    """The most that each agent's server had at any time, and its job's processes together, in a thread."""

    def __init__(self, relays: dict[str, AgentRelay]) -> None:
        self._relays = relays
        self.servers = {name: memory_of(relay.process) for name, relay in relays.items()}
        self.jobs = dict.fromkeys(relays, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            for name, relay in self._relays.items():
                now, most = memory_of(relay.process), self.servers[name]
                self.servers[name] = Memory(max(now.resident, most.resident), max(now.private, most.private))
                self.jobs[name] = max(self.jobs[name], sum(map(resident, job_processes(relay))))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def job_processes(relay: AgentRelay) -> list[psutil.Process]:
    """A runner has a session of its own and outlives its agent, but is known by the environment it was given."""
    wanted = relay.spec.hf_home
    return [process for process in psutil.process_iter() if process.pid != relay.process.pid and has(process, wanted)]


def has(process: psutil.Process, hf_home: str) -> bool:
    try:
        return process.environ().get("HF_HOME") == hf_home
    except psutil.Error:
        return False


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500.0)
    parser.add_argument(
        "--megabits", type=float, default=0.0, help="at most: a longer pull tells its agent more; 0: no limit"
    )
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-memory-", dir=given.folder) as text:
        folder = Path(text)
        files = make_content(folder / "source", {"model.gguf": round(given.megabytes * 1e6)})
        manifest = make_manifest(files, len(NAMES))
        members = [Member(name=name) for name in NAMES]
        control = LabController(members, NAMES[0], FolderSource(path=str(folder / "source")))
        with relay_lab(folder, manifest, NAMES, on_event=control.hear, kind=AgentRelay) as lab:
            control.lab = lab
            measure(lab, control, given.megabytes, given.megabits)


def measure(lab: RelayLab[AgentRelay], control: LabController, megabytes: float, megabits: float) -> None:
    for name in NAMES:
        lab.start(name, upload_bytes_per_second=round(megabits * 125_000))
    time.sleep(SETTLE_SECONDS)
    before = {name: memory_of(relay.process) for name, relay in lab.relays.items()}
    meter = Meter(lab.relays)
    for relay in lab.relays.values():
        relay.begin()
    started = control.begin()
    seconds = control.wait_until_complete(NAMES, LIMIT_SECONDS) - started
    if wrong := [what for name in NAMES for what in lab.wrong_files(name)]:
        raise SystemExit("\n".join(wrong))
    for relay in lab.relays.values():
        relay.stop_job()
    meter.stop()
    time.sleep(SETTLE_SECONDS)
    after = {name: memory_of(relay.process) for name, relay in lab.relays.items()}
    show(
        before,
        meter,
        after,
        {"megabytes": megabytes, "megabits_at_most": megabits or None, "seconds": round(seconds, 1)},
    )


def show(before: dict[str, Memory], meter: Meter, after: dict[str, Memory], details: dict[str, object]) -> None:
    def cell(memory: Memory) -> str:
        return f"{memory.resident / 1e6:.1f} MB, {memory.private / 1e6:.1f} private"

    rows = [
        [
            f"{name} ({'head' if name == NAMES[0] else 'receiver'})",
            *(cell(memory[name]) for memory in (before, meter.servers, after)),
            f"{(after[name].resident - before[name].resident) / 1e6:+.1f} MB",
            f"{meter.jobs[name] / 1e6:.1f} MB",
        ]
        for name in NAMES
    ]
    head = ["agent's server", "before", "most during the pull", "after", "difference", "runner and relay, most"]
    details["agents"] = {
        name: {"before": asdict(before[name]), "during": asdict(meter.servers[name]), "after": asdict(after[name])}
        for name in NAMES
    }
    details["jobs_resident_bytes"] = meter.jobs
    report("The agents' own memory while their hosts relay a model", head, rows, details)


if __name__ == "__main__":
    main()
