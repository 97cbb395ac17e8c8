"""Files that commands write where `--output` says."""

import os
import tempfile
from pathlib import Path

from fleet_controller.cli.failures import CommandFailure


def write_output(output: str, text: str) -> None:
    """Replace the file as a whole: a reader finds the old one or the new one. Raises CommandFailure."""
    try:
        _replace(Path(output), text)
    except OSError as error:
        raise CommandFailure(f"{output} cannot be written: {error.strerror}", "choose another --output") from None


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as target:
        target.write(text)
    try:
        Path(target.name).chmod(0o666 & ~_umask())
        Path(target.name).replace(path)
    except OSError:
        Path(target.name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
