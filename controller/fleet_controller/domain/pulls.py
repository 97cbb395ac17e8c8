"""A pull: the files of one commit onto many hosts, fetched once and passed on. They mirror controller.proto."""

from enum import StrEnum

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.steps import ArtifactFile


class PullRequest(Frozen):
    """As a user asked for it. `source`: "" = the hub, "host:NAME", "host:NAME:/folder", or the URL of a hub."""

    model: str = ""
    pattern: str
    quantization: str = ""
    repository: str = ""
    source: str = ""
    rate_bytes_per_second: int = 0
    folder: str = ""
    folder_host: str = ""
    backend: str = ""
    stop: bool = False


class PullPart(StrEnum):
    """What a host does in a pull."""

    HEAD = "head"  # it has the files, or a folder with them
    FETCH = "fetch"
    HAS = "has it"
    REFUSE = "refuse"
    FAIL = "fail"


class PullHost(Frozen):
    """`missing_bytes` is what has to come at most: the same content under another name is found by the host itself."""

    host: str
    part: PullPart
    missing_bytes: int = 0
    free_bytes: int | None = None
    problem: Problem | None = None


class PulledFiles(Frozen):
    """Files of one commit of a hub repository, with the hub's hashes."""

    repository: str
    commit: str
    revision: str = "main"
    quantization: str = ""
    files: tuple[ArtifactFile, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class PullSource(Frozen):
    """Where the bytes come from at first.

    `endpoints` are hubs that may have them, the best first ("" = https://huggingface.co). `host` is the head where it
    is given, `folder` a folder on it. `served_folder` lies on the controller's machine and is handed to the head.
    """

    endpoints: tuple[str, ...] = ()
    host: str = ""
    folder: str = ""
    served_folder: str = ""
    words: str = ""


class PlannedPull(Frozen):
    """One pull as it is shown and kept. `digest` names the work: files, hosts and source."""

    pull_id: str
    digest: str
    files: PulledFiles
    source: PullSource
    hosts: tuple[PullHost, ...] = ()
    notes: tuple[str, ...] = ()
    resumes: bool = False
    rate_bytes_per_second: int = 0

    @property
    def partners(self) -> tuple[PullHost, ...]:
        """Those whose relays take part."""
        return tuple(host for host in self.hosts if host.part in (PullPart.HEAD, PullPart.FETCH))


class PullPlan(Frozen):
    plan_id: str
    pulls: tuple[PlannedPull, ...] = ()
    failed: tuple[PullHost, ...] = ()


class PullState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # some host lacks the files; the same command begins another pull
    STOPPED = "stopped"  # as asked for: whoever carries it out ends the relays
