"""What can go wrong in a job, in the words a user sees; all of them are ProblemErrors.

JobProblem     a step could not do its work: the job fails with it
SpecProblem    the spec breaks a rule: it is refused before anything is written
UnknownJob     no job of that id here
JobConflict    the id is taken by another spec
Stopped        the job was cancelled; not a problem
"""

import errno
from pathlib import Path

from fleet_agent.problem import ProblemError

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY_ERRNOS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class JobProblem(ProblemError):
    """A step could not do its work."""


class SpecProblem(ProblemError):
    """A job spec breaks a rule."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__("invalid-job", message, remedy, "INVALID_ARGUMENT")


class UnknownJob(ProblemError):
    """There is no such job on this host."""

    def __init__(self, job_id: str) -> None:
        remedy = "it may have been removed; submit it again"
        super().__init__("unknown-job", f"no job {job_id!r} on this host", remedy, "NOT_FOUND")


class JobConflict(ProblemError):
    """The id is taken by a job with another spec."""

    def __init__(self, job_id: str) -> None:
        message = f"job {job_id!r} exists with another spec"
        super().__init__(
            "job-conflict", message, "use another job id, or follow the job that is there", "ALREADY_EXISTS"
        )


class Stopped(Exception):
    """The job was cancelled while this was working."""


def readable_size(size_bytes: int) -> str:
    """Decimal units, as disks and downloads are sold: "18.13 GB"."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes} B"


def disk_full(path: Path, needed_bytes: int | None, free_bytes: int | None) -> JobProblem:
    """The one way to say that a disk is full; both numbers, as far as they are known."""
    needed = "more space" if needed_bytes is None else f"{readable_size(needed_bytes)} ({needed_bytes} bytes)"
    free = "an unknown amount" if free_bytes is None else f"{readable_size(free_bytes)} ({free_bytes} bytes)"
    return JobProblem(
        "disk-full",
        f"the disk of {path} is full: {needed} needed, {free} free",
        "free some space there (`fleet doctor` lists the folders), or set another model folder in hosts.yaml",
    )


def not_writable(path: Path, why: str) -> JobProblem:
    return JobProblem(
        "not-writable",
        f"cannot write in {path}: {why}",
        "give this user write permission there, or set another HF_HOME or model folder for the host in hosts.yaml",
    )
