"""What a rollout moves: files with the hub's hashes, cut into pieces. It comes from the controller only."""

from dataclasses import dataclass

from fleet_agent.jobs.codec import digest
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import ArtifactFile, HubDownloadStep
from fleet_agent.steps.hub_download import check as check_download

LARGEST_PIECE_BYTES = 1 << 20
SMALLEST_PIECE_BYTES = 1 << 14
# Each hop holds a piece back until it has all of it, so N hops cost N pieces' time: 2 % of the whole at most.
PIECES_PER_HOP = 50
MOST_FILES = 1 << 14
MOST_PIECES = 1 << 24
DIGEST_BYTES = 32


def piece_bytes_for(total_bytes: int, hosts: int) -> int:
    """Size of a piece (a power of two) for that many bytes through a chain of that many hosts."""
    wanted = total_bytes // (PIECES_PER_HOP * max(1, hosts))
    size = LARGEST_PIECE_BYTES
    while size > wanted and size > SMALLEST_PIECE_BYTES:
        size >>= 1
    return size


@dataclass(frozen=True)
class Manifest:
    """Files of one commit of a hub repository, in the order in which they are moved."""

    repository: str = ""
    commit: str = ""
    revision: str = ""
    files: tuple[ArtifactFile, ...] = ()
    piece_bytes: int = LARGEST_PIECE_BYTES

    def digest(self) -> str:
        """64 hex digits; both ends of a link compare it. The revision is a name only and does not count."""
        return digest([self.repository, self.commit, [*self.files], self.piece_bytes])

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def pieces(self, file: int) -> int:
        """Number of pieces of a file; none of an empty one."""
        return -(-self.files[file].size_bytes // self.piece_bytes)

    def length(self, file: int, piece: int) -> int:
        """Bytes of one piece; the last one of a file may be shorter."""
        return min(self.piece_bytes, self.files[file].size_bytes - piece * self.piece_bytes)


def check_manifest(manifest: Manifest) -> None:
    """Raises SpecProblem for a manifest that breaks a rule: names that lead out of the cache, sizes out of bounds."""
    check_download(
        HubDownloadStep(
            repository=manifest.repository,
            commit=manifest.commit,
            revision=manifest.revision,
            files=manifest.files,
        )
    )
    if not SMALLEST_PIECE_BYTES <= manifest.piece_bytes <= LARGEST_PIECE_BYTES:
        raise SpecProblem(f"pieces of {manifest.piece_bytes} bytes are out of bounds")
    if len(manifest.files) > MOST_FILES:
        raise SpecProblem(f"more than {MOST_FILES} files in one rollout")
    if len({file.path for file in manifest.files}) < len(manifest.files):
        raise SpecProblem("a file is named twice")
    for number, file in enumerate(manifest.files):
        if file.size_bytes < 0 or manifest.pieces(number) > MOST_PIECES:
            raise SpecProblem(f"{file.path}: a size of {file.size_bytes} bytes is out of bounds")
