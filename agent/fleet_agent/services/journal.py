"""What should run and what we last saw of it: one JSON file a service, written ahead of every act.

The intent (with a random token that the server carries in its environment) is on disk before a server is started, and
its identity right after. A crash in between leaves a token without an identity: the process that carries it is the
server.

A server that is started beside another has its record inside that one's. One write makes it the service, and notes what
has to end: a crash at any moment leaves one of the two, and whoever reads the journal ends the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fleet_agent.process import ProcessIdentity
from fleet_agent.services.model import (
    LATER_FIELDS,
    DesiredState,
    Problem,
    ServiceSpec,
    ServiceState,
    spec_from_document,
)
from fleet_agent.services.transitions import Condition

FORMAT = 1
ASIDE = ".corrupt-"  # and the time in ms


@dataclass(frozen=True)
class Remains:
    """A server that has to end; found by its token where its identity was not written any more."""

    token: str = ""
    process: ProcessIdentity | None = None
    port: int = 0


@dataclass(frozen=True)
class Successor:
    """A server that will be the service as `spec` says; `server` is its life until then, maybe on another port."""

    spec: ServiceSpec
    server: ServiceRecord


@dataclass(frozen=True)
class ServiceRecord:
    """Everything that is known of a service. `token` is written before `process`: see the module's docstring.

    `command` is what runs before a start or after an end; a crash of the agent leaves it behind. `leaving` ends before
    anything of the service is started.
    """

    spec: ServiceSpec
    desired: DesiredState
    condition: Condition
    token: str = ""
    process: ProcessIdentity | None = None
    argv: tuple[str, ...] = ()
    last_exit_code: int | None = None
    problem: Problem | None = None
    command: ProcessIdentity | None = None
    successor: Successor | None = None
    leaving: tuple[Remains, ...] = ()


@dataclass(frozen=True)
class CorruptRecord:
    """A journal file that could not be read; it was kept aside under `kept_as`."""

    name: str
    kept_as: Path
    reason: str


class ServiceJournal:
    """A folder with <name>.json for each service."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> tuple[list[ServiceRecord], list[CorruptRecord]]:
        """All records by name; a file that cannot be read is moved aside and reported, and hurts no other.

        What was moved aside is tried again at each load, until the service is deployed anew or forgotten: its server
        may still run, and an agent that went back to an older version cannot read what the newer one wrote.
        """
        self._bring_back()
        records: list[ServiceRecord] = []
        corrupt: list[CorruptRecord] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = decode(json.loads(path.read_bytes()))
                if record.spec.name != path.stem:
                    raise ValueError(f"it describes a service of another name, {record.spec.name!r}")
                records.append(record)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                corrupt.append(self._keep_aside(path, f"{type(error).__name__}: {error}"))
        return records, corrupt

    def _bring_back(self) -> None:
        """The newest file that was moved aside takes its name again, where no record has it."""
        for aside in sorted(self._asides("*"), reverse=True):
            path = aside.with_name(aside.name.rpartition(ASIDE)[0])
            if not path.exists():
                with contextlib.suppress(OSError):
                    aside.rename(path)

    def write(self, record: ServiceRecord) -> None:
        """Atomic and durable: after the return it survives a power cut. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(record.spec.name)
        beside = path.with_suffix(".json.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(encode(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        self._sync_folder()

    def remove(self, name: str) -> None:
        """Forgets a service, and what was moved aside under its name; one that is not there is fine."""
        self._path(name).unlink(missing_ok=True)
        for aside in self._asides(name):
            aside.unlink(missing_ok=True)
        self._sync_folder()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _asides(self, name: str) -> list[Path]:
        found = self._folder.glob(f"{name}.json{ASIDE}*")
        return [path for path in found if path.name.rpartition(ASIDE)[2].isdigit()]

    def _keep_aside(self, path: Path, reason: str) -> CorruptRecord:
        aside = path.with_name(f"{path.name}{ASIDE}{time.time_ns() // 1_000_000}")
        try:
            path.rename(aside)
        except OSError as error:
            return CorruptRecord(path.stem, path, f"{reason}; it could not be moved aside: {error}")
        return CorruptRecord(path.stem, aside, reason)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(record: ServiceRecord) -> dict[str, Any]:
    """A JSON document; enums by their value.

    What came later is written only where it says something: an agent that goes back to the version before reads it.
    """
    document = asdict(replace(record, successor=None))
    document["spec"] = _spec_document(record.spec)
    for name in ("command", "leaving", "successor"):
        if not document[name]:
            del document[name]
    if record.successor is not None:
        successor = record.successor
        document["successor"] = {"spec": _spec_document(successor.spec), "server": encode(successor.server)}
    if document["problem"] is not None:
        del document["problem"]["tail"]  # it is in the service's log
    return {"format": FORMAT, **document}


def _spec_document(spec: ServiceSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if value or name not in LATER_FIELDS}


def decode(document: Any) -> ServiceRecord:
    """The inverse of encode(). Raises KeyError, TypeError or ValueError for anything else."""
    if not isinstance(document, Mapping):
        raise ValueError("not a JSON object")
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, this agent reads {FORMAT}")
    condition = dict(document["condition"])
    condition["state"] = ServiceState(condition["state"])
    problem = document["problem"]
    return ServiceRecord(
        spec=spec_from_document(document["spec"]),
        desired=DesiredState(document["desired"]),
        condition=Condition(**condition),
        token=str(document["token"]),
        process=_identity(document["process"]),
        argv=tuple(document["argv"]),
        last_exit_code=document["last_exit_code"],
        problem=None if problem is None else Problem(**problem),
        command=_identity(document.get("command")),
        successor=_successor(document.get("successor")),
        leaving=tuple(
            Remains(str(one["token"]), _identity(one["process"]), int(one["port"]))
            for one in document.get("leaving", ())
        ),
    )


def _successor(document: Any) -> Successor | None:
    if document is None:
        return None
    return Successor(spec_from_document(document["spec"]), decode(document["server"]))


def _identity(document: Any) -> ProcessIdentity | None:
    return None if document is None else ProcessIdentity(int(document["pid"]), str(document["start_token"]))
