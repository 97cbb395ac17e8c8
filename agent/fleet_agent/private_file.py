"""Files that only their owner may ever read: secrets, keys."""

import os
from pathlib import Path

TEMPORARY = ".new~"


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file whole, with mode 0600 and at no moment open to others. Its folder must be ours and 0700."""
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def make_private_folder(folder: Path) -> None:
    """With mode 0700, whatever the umask is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
