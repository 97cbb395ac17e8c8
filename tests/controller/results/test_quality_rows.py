"""Scores by artifact: kept, read, and never mixed with those of another scale."""

import sqlite3
from pathlib import Path
from typing import Any

from fleet_controller.results.quality import QualityRow, SubjectScore, load_quality, quality_for, save_quality
from fleet_controller.state import MIGRATIONS, StateDatabase


def row(artifact: str, score: float, **said: Any) -> QualityRow:
    values: dict[str, Any] = {
        "run_id": f"{artifact}-{score}-{said}", "host": "box", "model": "tiny", "quantization": "Q8_0",
        "artifact_hash": artifact, "metric": "mmlu_pro", "protocol": "tiger", "protocol_version": "1",
        "dataset_hash": "d1", "score": score, "low": score - 0.05, "high": score + 0.05, "n": 280,
    }  # fmt: skip
    return QualityRow(**{**values, **said})


def test_a_row_comes_back_as_it_was_kept_and_a_resend_adds_nothing(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    subject = SubjectScore(subject="math", n=20, correct=5, low=0.1, high=0.5)
    kept = row("a", 0.25, subjects=(subject,), raw={"cut_off": ["q1"]}, cut_off=1, taken_unix_ms=5)
    assert save_quality(database, kept)
    assert not save_quality(database, kept)
    assert [found for _, found in load_quality(database)] == [kept]
    assert [found for _, found in load_quality(database, model="TINY", metric="mmlu_pro")] == [kept]
    assert load_quality(database, model="other") == []
    assert load_quality(database, metric="perplexity") == []


def test_the_database_of_a_fleet_before_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    with sqlite3.connect(path) as connection:
        for migration in MIGRATIONS[:3]:
            migration(connection)
        connection.execute("PRAGMA user_version = 3")
        connection.execute("INSERT INTO hosts VALUES ('box', '{}', 7)")
    database = StateDatabase(path)
    assert list(database.known_hosts()) == ["box"]
    assert load_quality(database) == []
    assert save_quality(database, row("a", 0.5))


def test_one_scale_is_taken_for_all_artifacts() -> None:
    """`b` has a better score in another protocol, which says nothing about `a`."""
    rows = [row("a", 0.60), row("b", 0.55), row("b", 0.80, protocol="lm-eval", protocol_version="0.4.13", n=12000)]
    first, second = quality_for(rows, "a"), quality_for(rows, "b")
    assert first is not None and second is not None
    assert (first.name, first.score) == ("MMLU-Pro (tiger 1)", 0.60)
    assert (second.name, second.score) == ("MMLU-Pro (tiger 1)", 0.55)


def test_an_artifact_without_a_score_on_that_scale_has_none() -> None:
    rows = [row("a", 0.6), row("b", 0.5), row("c", 0.9, dataset_hash="d2"), row("d", 0.9, settings="1024 tokens")]
    assert quality_for(rows, "c") is None
    assert quality_for(rows, "d") is None
    assert quality_for(rows, "nobody") is None


def test_of_two_runs_that_with_more_questions_is_taken() -> None:
    rows = [row("a", 0.6, n=280), row("a", 0.58, n=12032), row("a", 0.7, n=280, taken_unix_ms=9)]
    found = quality_for(rows, "a")
    assert found is not None and (found.score, found.low, found.high) == (0.58, 0.58 - 0.05, 0.58 + 0.05)


def test_perplexity_is_no_score_of_this_kind() -> None:
    """Less is better there, and it compares quantizations of one model only."""
    assert quality_for([row("a", 7.2, metric="perplexity"), row("a", 0.01, metric="kl_divergence")], "a") is None


def test_repetitions_share_a_fingerprint_and_other_questions_do_not() -> None:
    assert row("a", 0.5).fingerprint == row("a", 0.6).fingerprint
    assert row("a", 0.5).fingerprint != row("a", 0.5, selection="20 a subject, seed 2").fingerprint
