"""The lab notes' own tables among the reference data: what tests of their figures look at."""

from pathlib import Path

from fleet_inventory.reference_data import reference_files


def notes_files() -> tuple[Path, ...]:
    """The one file of the notes; others hold what was measured elsewhere."""
    return tuple(path for path in reference_files() if path.name == "lab_notes_results.csv")
