"""Orders to a job while it runs: appended by the agent, read by the runner.

orders.jsonl    one JSON object a line, append-only: a new runner of the same job knows what was ordered before
steer           named pipe: whoever appends writes a byte
credentials/    authority.pem, certificate.pem, key.pem, each of mode 0600; gone when the job has ended
"""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.store import JobFolder, wake
from fleet_agent.private_file import make_private_folder, write_private

LONGEST_ORDER_BYTES = 1 << 20
# Of all orders of one job; a pull of some hundred hosts that is repaired a thousand times takes less.
MOST_ORDER_BYTES = 64 << 20
FALLBACK_POLL_SECONDS = 0.25
PIPE_BYTES = 1 << 16
CREDENTIAL_FILES = ("authority.pem", "certificate.pem", "key.pem")


class Steering:
    """The orders of one job, on both sides."""

    def __init__(self, folder: JobFolder) -> None:
        self._path = folder.path / "orders.jsonl"
        self._pipe = folder.path / "steer"
        self.credentials = folder.path / "credentials"

    def append(self, document: str) -> None:
        """On disk when this returns. Raises SpecProblem for what is no JSON object, JobProblem where it is too much."""
        try:
            line = json.dumps(json.loads(document), separators=(",", ":")).encode() + b"\n"
        except ValueError:
            raise SpecProblem("an order to a job is a JSON object") from None
        if not line.startswith(b"{") or len(line) > LONGEST_ORDER_BYTES:
            raise SpecProblem("an order to a job is a JSON object of at most 1 MiB")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "ab", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size + len(line) > MOST_ORDER_BYTES:
                raise JobProblem("too-many-orders", "this job was given more orders than are kept", "begin it again")
            stream.write(line)
            os.fsync(stream.fileno())
        wake(self._pipe)

    def put_credentials(self, authority: str, certificate: str, key: str) -> None:
        """Replaces them; the key is written last, so that whoever sees it has all three."""
        make_private_folder(self.credentials)
        for name, text in zip(CREDENTIAL_FILES, (authority, certificate, key), strict=True):
            write_private(self.credentials / name, text.encode())
        wake(self._pipe)

    def remove_credentials(self) -> None:
        shutil.rmtree(self.credentials, ignore_errors=True)

    @property
    def has_credentials(self) -> bool:
        return (self.credentials / CREDENTIAL_FILES[-1]).is_file()

    @contextlib.contextmanager
    def following(self) -> Iterator["OrderReader"]:
        """For the runner, within its event loop."""
        with contextlib.suppress(
            OSError
        ):  # it is there already, or the file system has none: then we look now and then
            os.mkfifo(self._pipe, 0o600)
        reader = OrderReader(self._path, self._pipe)
        try:
            yield reader
        finally:
            reader.close()


class OrderReader:
    """Each order once, in their order."""

    def __init__(self, path: Path, pipe: Path) -> None:
        self._path = path
        self._offset = 0
        self._rung = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._poll_seconds: float | None = None
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.add_reader(self._descriptor, self._ring)
        except OSError:
            self._poll_seconds = FALLBACK_POLL_SECONDS

    def _ring(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, PIPE_BYTES)
        self._rung.set()

    async def changed(self) -> None:
        """Returns once something may have come."""
        if self._poll_seconds is None:
            await self._rung.wait()
        else:
            await asyncio.sleep(self._poll_seconds)
        self._rung.clear()

    def read(self) -> list[dict[str, Any]]:
        """The orders since the last call; a line that is still being written is left for later."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                *lines, _ = stream.read().split(b"\n")
        except FileNotFoundError:
            return []
        self._offset += sum(len(line) + 1 for line in lines)
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def close(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def latest(orders: list[dict[str, Any]], kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of each of these kinds the last order, in the order in which they came: what a new process has to be told."""
    last = {order.get("order"): place for place, order in enumerate(orders) if order.get("order") in kinds}
    return [orders[place] for place in sorted(last.values())]
