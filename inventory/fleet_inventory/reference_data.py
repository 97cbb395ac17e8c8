"""Results that ship with fleet: tables that others measured, each row with its source."""

from pathlib import Path

REFERENCE_FOLDER = Path(__file__).parent / "reference"


def reference_files() -> tuple[Path, ...]:
    """The CSV files, by name."""
    return tuple(sorted(REFERENCE_FOLDER.glob("*.csv")))
