"""The excerpts that the golden plans are held to are the lab notes' own text."""

from pathlib import Path

import pytest

NOTES = Path(__file__).parents[4] / "shared" / "lab-notes.md"
EXCERPTS = {"lab-notes-excerpt.md": 50, "lab-notes-cuda-excerpt.md": 50, "lab-notes-benchy-excerpt.md": 4}


@pytest.mark.skipif(not NOTES.exists(), reason="the lab notes lie beside the checkout, and are not there")
@pytest.mark.parametrize("excerpt", EXCERPTS)
def test_each_line_of_the_excerpt_stands_in_the_notes(excerpt: str) -> None:
    path = Path(__file__).parent / "data" / excerpt
    notes = {line.rstrip() for line in NOTES.read_text(encoding="utf-8").splitlines()}
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    strange = [line for line in lines if line not in notes and not line.startswith("<!--")]
    assert len(lines) > EXCERPTS[excerpt]
    assert strange == []
