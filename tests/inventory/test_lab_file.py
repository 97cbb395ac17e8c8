"""lab.yaml: problems in the words of the file, and where each entry stands."""

from pathlib import Path

import pytest

from fleet_inventory.base import InventoryError
from fleet_inventory.lab_file import entry_places, load_lab


def test_each_entry_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("stop_others: true\nmodels:\n  - model: a\n    hosts: x\n\n  - repository: b/c\n")
    assert [entry.hosts for entry in load_lab(path).models] == ["x", "all"]
    assert entry_places(path) == (f"{path}:3: models[0]", f"{path}:6: models[1]")
    path.write_text("stop_others: true\n")
    assert entry_places(path) == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{hosts: a}", "neither a model nor"),
        ("{model: a, repository: b/c}", "both a model and"),
        ("{modle: a}", "did you mean"),
    ],
)
def test_what_an_entry_cannot_mean_is_told_with_its_line(tmp_path: Path, entry: str, words: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(f"models:\n  - {entry}\n")
    with pytest.raises(InventoryError, match=rf"lab.yaml:2: models\[0\].*{words}"):
        load_lab(path)
