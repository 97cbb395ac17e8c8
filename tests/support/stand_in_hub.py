"""A stand-in for the model hub: the calls that fleet, huggingface_hub and llama-server make, over a folder.

As a class (`with StandInHub(root) as hub: hub.url`) it also counts what it served and misbehaves on request; as a
program it is what a test in another network namespace starts:

    python -m support.stand_in_hub ROOT [--host H] [--port P] [--cut-after N] [--throttle BYTES_PER_SECOND] ...

ROOT/<owner>/<name>/... is one model repository. The first line printed is its URL.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

LFS_SUFFIXES = (".gguf", ".safetensors", ".bin")
BLOCK_BYTES = 1 << 14


@dataclass(frozen=True)
class Served:
    """One answer with bytes of a file: [start, start + sent) of it went out."""

    repository: str
    path: str
    range_header: str | None
    start: int
    sent: int
    authorization: str | None


@dataclass
class Behaviour:
    """What goes wrong, and how. Change it between requests."""

    cut_after: int = 0  # each answer with more bytes than that ends after them, `cuts` times in all
    cuts: int = 1_000_000
    throttle: int = 0  # bytes a second
    ignore_range: bool = False
    wrong_bytes: int = 0  # that many answers carry a flipped byte
    gated: set[str] = field(default_factory=set)  # repositories that want the token
    token: str = "hf_stand_in"
    metadata_only: bool = False  # a mirror without the files
    fail_status: int = 0  # `failures` answers for files are this status instead
    failures: int = 0
    redirect_to: str = ""  # files are redirected to this base URL, as a hub does to its CDN
    hold_after: int = 0  # each answer pauses after so many bytes until `released` is set
    modelscope: bool = False  # as ModelScope: no list, files below /models by its own branch, ranges with status 200
    released: threading.Event = field(default_factory=threading.Event)


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class StandInHub:
    """A hub on 127.0.0.1 in a thread of its own."""

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0, **behaviour: Any) -> None:
        self.root = root
        self.behaviour = Behaviour(**behaviour)
        self.served: list[Served] = []
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self._hashes: dict[tuple[str, int, int], tuple[str, str]] = {}
        self._server = ThreadingHTTPServer((host, port), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "StandInHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.behaviour.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, path: str, content: bytes) -> dict[str, Any]:
        """Put a file there; what the hub says about it: path, size_bytes, sha256 (LFS) or git_blob_id."""
        target = self.root / repository / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        entry = self.entry(repository, target)
        lfs = entry.get("lfs")
        known = {"path": path, "size_bytes": entry["size"]}
        return {**known, "sha256": lfs["oid"]} if lfs else {**known, "git_blob_id": entry["oid"]}

    def files(self, repository: str) -> list[Path]:
        return sorted(path for path in (self.root / repository).rglob("*") if path.is_file())

    def commit(self, repository: str) -> str:
        """Changes with any content, as a real commit does."""
        digest = hashlib.sha1()
        for path in self.files(repository):
            digest.update(f"{path.relative_to(self.root / repository)} {self._hashes_of(path)[0]}\n".encode())
        return digest.hexdigest()

    def entry(self, repository: str, path: Path) -> dict[str, Any]:
        blob, sha256 = self._hashes_of(path)
        size = path.stat().st_size
        name = path.relative_to(self.root / repository).as_posix()
        found: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": blob}
        if path.suffix in LFS_SUFFIXES:
            found["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return found

    def _hashes_of(self, path: Path) -> tuple[str, str]:
        figures = path.stat()
        key = (str(path), figures.st_size, figures.st_mtime_ns)
        if key not in self._hashes:
            content = path.read_bytes()
            self._hashes[key] = (git_blob_id(content), hashlib.sha256(content).hexdigest())
        return self._hashes[key]

    def bytes_served(self, path: str | None = None) -> int:
        with self.changed:
            return sum(one.sent for one in self.served if path in (None, one.path))

    def ranges(self, path: str) -> list[tuple[int, int]]:
        """(start, end) of what went out of one file, in order."""
        with self.changed:
            return [(one.start, one.start + one.sent) for one in self.served if one.path == path]

    def wait_for_bytes(self, count: int, timeout: float = 60.0) -> None:
        """Block until so many bytes of files have gone out."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while sum(one.sent for one in self.served) < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the hub served fewer than {count} bytes in {timeout:g} s")
                self.changed.wait(left)

    def begin(self, one: Served) -> int:
        with self.changed:
            self.served.append(one)
            return len(self.served) - 1

    def count(self, index: int, sent: int) -> None:
        with self.changed:
            self.served[index] = dataclasses.replace(self.served[index], sent=sent)
            self.changed.notify_all()


def _handler_of(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the client went away, or we cut it off
            self.close_connection = True

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._route()

    def _json(self, status: int, value: Any, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        self._json(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def _admitted(self, repository: str) -> bool:
        if not (self.hub.root / repository).is_dir():
            self._error(404, "RepoNotFound", "Repository not found")
            return False
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository in self.hub.behaviour.gated and token != self.hub.behaviour.token:
            self._error(403 if token else 401, "GatedRepo", f"Access to model {repository} is restricted.")
            return False
        return True

    def _route(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.behaviour.modelscope and path.startswith("/api/"):
            self._json(404, {"Code": 404, "Message": "Not Found", "Success": False})
        elif path == "/api/whoami-v2":
            self._json(200, {"type": "user", "name": "tester", "auth": {"type": "access_token"}})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            if self._admitted(found[1]):
                self._json(200, [self.hub.entry(found[1], file) for file in self.hub.files(found[1])])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            if self._admitted(found[1]):
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.hub.commit(found[1])}
                self._json(200, {"tags": [], "branches": [main], "converts": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if (self.hub.root / found[1]).is_dir():
                self._model(found[1], found[2], "blobs" in query)
            else:
                self._error(404, "RepoNotFound", "Repository not found")
        elif found := re.fullmatch(self._places_of_files(), path):
            if self._admitted(found[1]):
                self._file(found[1], found[2], found[3])
        else:
            self._json(404, {"error": "Not Found"})

    def _places_of_files(self) -> str:
        return ("/models" if self.hub.behaviour.modelscope else "") + r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)"

    def _model(self, repository: str, revision: str | None, blobs: bool) -> None:
        commit = self.hub.commit(repository)
        if revision not in (None, "main", commit):
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = []
        for file in self.hub.files(repository):
            entry = self.hub.entry(repository, file)
            sibling: dict[str, Any] = {"rfilename": entry["path"]}
            if blobs:
                sibling.update(size=entry["size"], blobId=entry["oid"])
                if "lfs" in entry:
                    sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
            siblings.append(sibling)
        gated = "auto" if repository in self.hub.behaviour.gated else False
        dates = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
        counts = {"downloads": 1, "likes": 0, "tags": ["gguf"], "disabled": False, "private": False}
        names = {"_id": "0", "id": repository, "modelId": repository, "author": repository.split("/")[0]}
        self._json(200, {**names, **counts, **dates, "sha": commit, "gated": gated, "siblings": siblings})

    def _file(self, repository: str, revision: str, name: str) -> None:
        behaviour, root = self.hub.behaviour, (self.hub.root / repository).resolve()
        commit, file = self.hub.commit(repository), (root / name).resolve()
        if revision not in (("master",) if behaviour.modelscope else ("main", commit)):
            self._error(404, "RevisionNotFound", "Invalid rev id")
        elif behaviour.metadata_only or not file.is_relative_to(root) or not file.is_file():
            self._error(404, "EntryNotFound", "Entry not found")
        elif behaviour.failures > 0:
            behaviour.failures -= 1
            self._error(behaviour.fail_status, "Unavailable", "try again")
        elif behaviour.redirect_to:
            self.send_response(302)
            self.send_header(
                "Location", behaviour.redirect_to + urllib.parse.quote(f"/{repository}/resolve/main/{name}")
            )
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(repository, name, file, commit)

    def _send(self, repository: str, name: str, file: Path, commit: str) -> None:
        behaviour, content = self.hub.behaviour, file.read_bytes()
        start = self._start(len(content))
        if start is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        partial = "Range" in self.headers and not behaviour.ignore_range
        entry = self.hub.entry(repository, file)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self.send_response(206 if partial and not behaviour.modelscope else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        if "lfs" in entry:
            self.send_header("X-Linked-ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        end = self._end(len(content))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        if self.command == "HEAD":
            self.end_headers()
        else:
            self._body(repository, name, content[:end], start)

    def _start(self, size: int) -> int | None:
        found = re.fullmatch(r"bytes=(\d+)-(?:\d+)?", self.headers.get("Range") or "")
        if found is None or self.hub.behaviour.ignore_range:
            return 0
        return int(found[1]) if int(found[1]) < size else None

    def _end(self, size: int) -> int:
        found = re.fullmatch(r"bytes=\d+-(\d+)", self.headers.get("Range") or "")
        return size if found is None or self.hub.behaviour.ignore_range else min(int(found[1]) + 1, size)

    def _body(self, repository: str, name: str, content: bytes, start: int) -> None:
        behaviour = self.hub.behaviour
        served = Served(
            repository, name, self.headers.get("Range"), start, 0, self.headers.get("Authorization")
        )  # fmt: skip
        index, body = self.hub.begin(served), content[start:]
        self.end_headers()  # it is counted before anybody can have it
        if behaviour.wrong_bytes > 0 and body:
            behaviour.wrong_bytes -= 1
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        end = len(body)
        if behaviour.cut_after and behaviour.cuts > 0 and end > behaviour.cut_after:
            behaviour.cuts -= 1
            end = behaviour.cut_after
        sent = 0
        while sent < end:
            limit = end
            if behaviour.hold_after and sent < behaviour.hold_after:
                limit = min(end, behaviour.hold_after)
            elif behaviour.hold_after and sent == behaviour.hold_after:
                behaviour.released.wait()
            block = body[sent : min(sent + BLOCK_BYTES, limit)]
            self.wfile.write(block)
            sent += len(block)
            self.hub.count(index, sent)
            if behaviour.throttle:
                time.sleep(len(block) / behaviour.throttle)
        if end < len(body):
            self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cut-after", type=int, default=0)
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--throttle", type=int, default=0)
    parser.add_argument("--ignore-range", action="store_true")
    parser.add_argument("--wrong-bytes", type=int, default=0)
    parser.add_argument("--gated", action="append", default=[])
    parser.add_argument("--token", default="hf_stand_in")
    parser.add_argument("--metadata-only", action="store_true")
    given = vars(parser.parse_args())
    given["gated"] = set(given["gated"])
    with StandInHub(given.pop("root"), given.pop("host"), given.pop("port"), **given) as hub:
        print(hub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
