"""The pair that was measured on a GPU, as it ships: speculation that loses is known to lose."""

from pathlib import Path

from fleet_controller.choosing.speculation import verdict_of
from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.operations.resolving import catalog
from fleet_controller.state import StateDatabase


def test_a_pair_on_an_h100_shows_that_a_draft_loses_there(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    pairs = Knowledge(database, catalog()).speculation
    database.close()
    measured = [pair for pair in pairs if "H100" in pair.plain.device.name]
    assert len(measured) == 2  # a draft that is mostly wrong, and one that is mostly right
    for pair in measured:
        assert (pair.plain.model.name.lower(), pair.method) == ("qwen3-8b", "draft")
        assert pair.gain < -0.2
    verdict = verdict_of(measured[0].plain, pairs)
    assert verdict is not None
    assert verdict.loses
    assert "loses" in verdict.text
