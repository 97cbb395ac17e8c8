"""What files a hub repository holds at one commit, with the hashes that the hub publishes for them."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.errors import (
    HubError,
    HubUnreachableError,
    NoFilesError,
    RepositoryGatedError,
    RepositoryUnknownError,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_SECONDS = 20.0
SPLIT_GGUF = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")
_SHOWN_FILES = 12


class HubSnapshot(Frozen):
    """One repository at one commit. Each file has its size and either sha256 (LFS) or git_blob_id.

    Of a `gated` repository anybody may see this much; the files want a token.
    """

    repository: str
    revision: str
    commit: str
    endpoint: str = ""
    files: tuple[ArtifactFile, ...] = ()
    gated: bool = False

    def select(self, patterns: Sequence[str]) -> tuple[ArtifactFile, ...]:
        """Files that match any pattern (`*` matches anything, slashes too); none given: all but git's own.

        Parts of a split GGUF are taken together. Raises NoFilesError, also where a part is missing.
        """
        if not patterns:
            chosen = [file for file in self.files if not file.path.rsplit("/", 1)[-1].startswith(".git")]
        else:
            chosen = [file for file in self.files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]
        if not chosen:
            raise NoFilesError(
                f"nothing in {self.repository} matches {' or '.join(patterns) or '*'}; it has: {self._listing()}",
                "choose one of these files or another quantization",
            )
        return self._with_all_parts(chosen)

    def _with_all_parts(self, chosen: Iterable[ArtifactFile]) -> tuple[ArtifactFile, ...]:
        by_path = {file.path: file for file in self.files}
        wanted = {file.path: file for file in chosen}
        for path in tuple(wanted):
            for part in split_parts(path):
                if part not in by_path:
                    raise NoFilesError(
                        f"{self.repository} has {path} but not {part}", "the repository is incomplete; use another one"
                    )
                wanted[part] = by_path[part]
        return tuple(wanted[path] for path in sorted(wanted))

    def _listing(self) -> str:
        models = [file.path for file in self.files if file.path.endswith((".gguf", ".safetensors"))]
        names = models or [file.path for file in self.files]
        more = f" and {len(names) - _SHOWN_FILES} more" if len(names) > _SHOWN_FILES else ""
        return ", ".join(names[:_SHOWN_FILES]) + more if names else "no files at all"


def split_parts(path: str) -> tuple[str, ...]:
    """All parts of the split GGUF that `path` is one of; empty for any other file."""
    found = SPLIT_GGUF.match(path)
    if not found:
        return ()
    count = found["count"]
    return tuple(f"{found['stem']}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1))


def list_repository(
    repository: str, endpoint: str = "", token: str | None = None, revision: str = "main"
) -> HubSnapshot:
    """One call to the hub (blocking: use a thread). An empty `endpoint` is HF_ENDPOINT or the hub itself.

    Raises RepositoryUnknownError, RepositoryGatedError, HubUnreachableError or HubError.
    """
    from huggingface_hub import HfApi  # half a second of imports that `fleet --help` must not pay

    # Not None: it would look for a token itself, and send the user's own to any mirror.
    api = HfApi(endpoint=endpoint or None, token=token or False)
    used = (endpoint or api.endpoint).rstrip("/")
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except Exception as error:
        raise _explained(error, repository, revision, used) from error
    files = []
    for sibling in info.siblings or ():
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        size = sibling.lfs.size if sibling.lfs else sibling.size
        blob_id = "" if sha256 else sibling.blob_id or ""
        if size is None or not (sha256 or blob_id):
            raise HubError(f"{used} gives no size and hash for {sibling.rfilename} of {repository}", _MIRROR)
        files.append(ArtifactFile(path=sibling.rfilename, size_bytes=size, sha256=sha256, git_blob_id=blob_id))
    if not info.sha:
        raise HubError(f"{used} does not say at which commit {repository} is", _MIRROR)
    return HubSnapshot(
        repository=repository,
        revision=revision,
        commit=info.sha,
        endpoint="" if used == DEFAULT_ENDPOINT else used,
        files=tuple(sorted(files, key=lambda file: file.path)),
        gated=bool(info.gated),
    )


_MIRROR = "set HF_ENDPOINT to a hub or a complete mirror that this machine reaches"


def _explained(error: Exception, repository: str, revision: str, endpoint: str) -> HubError:
    """Hub errors by what a user can do about them. The client's own texts run over several lines."""
    from huggingface_hub import errors

    gated = f"accept its terms on {endpoint}/{repository}, then set hub_token in hosts.yaml: env:HF_TOKEN or file:/path"
    if isinstance(error, errors.GatedRepoError):
        return RepositoryGatedError(f"{repository} is gated: the hub wants a token that may read it", gated)
    if isinstance(error, errors.RevisionNotFoundError):
        return RepositoryUnknownError(f"{repository} has no revision {revision!r} on {endpoint}", "check the revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        remedy = "check the spelling (owner/name); a private repository needs a token: hub_token in hosts.yaml"
        return RepositoryUnknownError(f"there is no repository {repository} on {endpoint}", remedy)
    if isinstance(error, errors.HFValidationError):
        return RepositoryUnknownError(f"{repository!r} is no repository name", "write it as owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnreachableError("HF_HUB_OFFLINE is set on this machine", "unset it, or give a path on the hosts")
    if isinstance(error, errors.HfHubHTTPError):
        return HubError(f"{endpoint} answered {_first_line(error)}", f"try again later, or {_MIRROR}")
    text = f"{endpoint} cannot be reached from here ({type(error).__name__}: {_first_line(error)})"
    return HubUnreachableError(text, f"{_MIRROR}, or deploy a file that is on the hosts by its path")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
