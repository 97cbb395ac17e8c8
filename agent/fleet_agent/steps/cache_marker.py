"""Which Hugging Face cache this is, whoever mounts it and under whatever path."""

import contextlib
import os
import uuid
from pathlib import Path

FILE_NAME = ".fleet-cache-id"


def cache_marker(folder: Path) -> str:
    """A word that hosts share whose cache is one folder; made where there is none. Empty for a read-only cache."""
    path = folder / FILE_NAME
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{FILE_NAME}.{uuid.uuid4().hex}"
        temporary.write_text(uuid.uuid4().hex)
        try:
            os.link(temporary, path)  # the first one wins, also over the network, and nobody reads half of it
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()[:64]
    return ""
