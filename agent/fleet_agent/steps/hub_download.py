"""Files of one hub repository at one commit, into the standard Hugging Face cache.

Result: {"snapshot": folder, "files": [paths], "fetched_bytes": n, "total_bytes": n, "changed": bool}.
"""

import os
import stat
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.cache import COMMIT, HASH, REPOSITORY, REVISION, HubCache, relative_path
from fleet_agent.artifacts.download import Watch, download
from fleet_agent.artifacts.hashing import expected_hash, hash_file, new_hash
from fleet_agent.artifacts.http import Source
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import ArtifactFile, HubDownloadStep
from fleet_agent.steps.context import StepContext

DEFAULT_ENDPOINT = "https://huggingface.co"
TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})


def check(step: HubDownloadStep) -> None:
    """http endpoints are taken, too (a mirror in the lab): every byte is hashed, and no token goes there."""
    if not REPOSITORY.fullmatch(step.repository) or "--" in step.repository or ".." in step.repository:
        raise SpecProblem(f"{step.repository!r} is no hub repository", 'give it as "owner/name"')
    if not COMMIT.fullmatch(step.commit):
        raise SpecProblem(f"{step.commit!r} is no full commit id", "40 hex digits: a branch moves, a commit does not")
    if step.revision and not REVISION.fullmatch(step.revision):
        raise SpecProblem(f"{step.revision!r} is no revision")
    if step.endpoint and urllib.parse.urlsplit(step.endpoint).scheme not in ("http", "https"):
        raise SpecProblem(f"{step.endpoint!r} is no http(s) endpoint")
    if step.token_file and not step.token_file.startswith("/"):
        raise SpecProblem(f"token_file {step.token_file!r} is no absolute path")
    if not step.files:
        raise SpecProblem(f"nothing to download from {step.repository}")
    for file in step.files:
        relative_path(file.path)
        hashes = [value for value in (file.sha256, file.git_blob_id) if value]
        if any(not HASH.fullmatch(value) for value in hashes):
            raise SpecProblem(f"{file.path}: the hash is not hexadecimal")
        try:
            expected_hash(file)
        except JobProblem as problem:
            raise SpecProblem(problem.message, problem.remedy) from None


async def run(step: HubDownloadStep, context: StepContext) -> dict[str, Any]:
    return await context.in_thread(_Fetch(step, context).run)


class _Fetch:
    """All files of the step, one after the other; progress counts bytes over all of them."""

    def __init__(self, step: HubDownloadStep, context: StepContext) -> None:
        self._step = step
        self._context = context
        self._cache = HubCache(context.layout.hf_home)
        self._notes = VerifiedNotes(context.layout.machine_dir)
        self._endpoint = (step.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._offline = step.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in TRUE_WORDS
        self._token = read_token(step.token_file, os.environ, context.layout.hf_home)
        self._total = sum(file.size_bytes for file in step.files)
        self._before = 0
        self._fetched = 0
        self._changed = False

    def run(self) -> dict[str, Any]:
        step = self._step
        if not self._all_in_place():
            self._cache.ensure_folders(step.repository)
            for file in step.files:
                self._one(file)
                self._before += file.size_bytes
            self._cache.write_reference(step.repository, step.revision, step.commit)
        self._context.progress(self._total, self._total, "bytes", "")
        return {
            "snapshot": str(self._cache.snapshot(step.repository, step.commit)),
            "files": [file.path for file in step.files],
            "fetched_bytes": self._fetched,
            "total_bytes": self._total,
            "changed": self._changed,
        }

    def _all_in_place(self) -> bool:
        """Whether every file is there and verified, so that not even write access is needed."""
        snapshot = self._cache.snapshot(self._step.repository, self._step.commit)
        return all(
            (snapshot / relative_path(file.path)).resolve() == self._cache.blob(self._step.repository, file).resolve()
            and self._verified(file)
            for file in self._step.files
        )

    def _verified(self, file: ArtifactFile) -> bool:
        """Whether the blob is whole and right; hashed once, then remembered."""
        blob = self._cache.blob(self._step.repository, file)
        try:
            if blob.stat().st_size != file.size_bytes:
                return False
        except OSError:
            return False
        if self._notes.holds(blob):
            return True
        self._context.log(f"{file.path}: verifying the copy that is in the cache")
        found = new_hash(file)
        hash_file(blob, found, lambda _: self._watch(file).check())
        if found.hexdigest() != expected_hash(file):
            return False
        self._notes.write(blob)
        return True

    def _one(self, file: ArtifactFile) -> None:
        with self._cache.lock(self._step.repository, file, self._context.cancelled):
            blob = self._cache.blob(self._step.repository, file)
            if not self._verified(file):
                if self._offline:
                    raise self._missing_offline(file)
                if blob.exists():
                    self._context.log(f"{file.path}: the copy in the cache is damaged; fetching it again")
                    blob.unlink()
                self._fetch(file, blob)
            _, linked = self._cache.link(self._step.repository, self._step.commit, file)
            self._changed = self._changed or linked

    def _fetch(self, file: ArtifactFile, blob: Path) -> None:
        present = self._cache.present_bytes(self._step.repository, file)
        path = urllib.parse.quote(file.path)
        url = f"{self._endpoint}/{self._step.repository}/resolve/{self._step.commit}/{path}"
        authorization = f"Bearer {self._token}" if self._token else ""
        download(Source(url, authorization), file, blob, self._watch(file))
        self._notes.write(blob, brought=True)
        self._fetched += max(0, file.size_bytes - present)
        self._changed = True

    def _watch(self, file: ArtifactFile) -> Watch:
        def progress(done: int, total: int) -> None:
            self._context.progress(self._before + done, self._total, "bytes", file.path)

        return Watch(progress, self._context.log, self._context.cancelled)

    def _missing_offline(self, file: ArtifactFile) -> JobProblem:
        return JobProblem(
            "missing-offline",
            f"{file.path} of {self._step.repository} is not in the cache, and this host is offline",
            "copy it into the host's Hugging Face cache, or drop HF_HUB_OFFLINE for this host in hosts.yaml",
        )


def read_token(token_file: str, environment: Mapping[str, str], hf_home: Path) -> str:
    """The hub token, as huggingface_hub finds it, except that the step's own file comes first; empty = none.

    Raises JobProblem where the step names a file that cannot be used.
    """
    if token_file:
        return _named_token(Path(token_file))
    if token := environment.get("HF_TOKEN", "").strip():
        return token
    try:
        return Path(environment.get("HF_TOKEN_PATH") or hf_home / "token").expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _named_token(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text().strip()
    except OSError as error:
        message = f"cannot read the hub token in {path}: {error.strerror}"
        raise JobProblem("bad-token-file", message, "correct the path, or log in on the host") from None
    if mode & 0o077:
        message = f"the hub token in {path} can be read by others (mode {mode:04o})"
        raise JobProblem("bad-token-file", message, f"on the host: chmod 600 {path}")
    return text
