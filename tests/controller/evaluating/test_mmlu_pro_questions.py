"""The data set as it is read, and which of its questions are asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.evaluating.dataset import DatasetError, dataset_of, read_folder, read_printed
from fleet_controller.evaluating.selection import select_questions, selection_text, subject_sizes
from support.mmlu_pro import ANSWERS, rows, write_dataset


def test_a_folder_of_json_or_json_lines_has_one_hash_whatever_the_files(tmp_path: Path) -> None:
    lines = read_folder(write_dataset(tmp_path / "lines"))
    (tmp_path / "whole").mkdir()
    for split, found in rows().items():
        (tmp_path / "whole" / f"{split}.json").write_text(json.dumps(found, indent=1))
    whole = read_folder(tmp_path / "whole")
    assert lines.sha256 == whole.sha256 and len(lines.sha256) == 64
    assert lines.subjects == ("computer science", "law", "math")
    printed = "\n".join(json.dumps({"split": split, "row": row}) for split, found in rows().items() for row in found)
    assert read_printed("hub", f"a warning\n{printed}\n").sha256 == lines.sha256
    other = read_folder(write_dataset(tmp_path / "other", {**ANSWERS, "math": "CDCABCECAB"}))
    assert other.sha256 != lines.sha256


def changed(**said: Any) -> dict[str, list[dict[str, Any]]]:
    found = rows()
    found["test"][0] |= said
    return found


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (changed(answer="A"), "test row 1: answer 'A' is not option 2"),
        (changed(question_id=1), "question_id twice"),
        (changed(options="none"), "test row 1: options"),
        (changed(category="chess"), "no validation rows of chess"),
        ({"test": [], "validation": []}, "has no test rows"),
    ],
)
def test_rows_that_are_none_of_mmlu_pro_are_named(splits: dict[str, list[dict[str, Any]]], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        dataset_of("made", splits)


def test_a_folder_without_rows_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no folder"):
        read_folder(tmp_path / "missing")
    with pytest.raises(DatasetError, match="has no test"):
        read_folder(tmp_path)
    (tmp_path / "test-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="parquet"):
        read_folder(tmp_path)


def test_each_subject_is_asked_alike_and_a_larger_part_holds_the_smaller() -> None:
    dataset = dataset_of("made", rows())
    twelve = select_questions(dataset, questions=12, seed=1)
    assert {name: sum(one.category == name for one in twelve) for name in dataset.subjects} == dict.fromkeys(
        dataset.subjects, 4
    )
    assert select_questions(dataset, questions=12, seed=1) == twelve
    assert set(twelve) < set(select_questions(dataset, questions=20, seed=1))
    assert set(select_questions(dataset, questions=12, seed=2)) != set(twelve)
    assert len(select_questions(dataset, questions=1)) == 3  # one of each subject at least
    assert set(select_questions(dataset, everything=True)) == set(dataset.test)
    assert selection_text(dataset, twelve, 1) == "12 of 30, 4 a subject, seed 1"
    assert selection_text(dataset, dataset.test, 0) == "all"


def test_a_subject_is_named_by_its_beginning() -> None:
    dataset = dataset_of("made", rows())
    found = select_questions(dataset, ["COMP", "law"], questions=4)
    assert {one.category for one in found} == {"computer science", "law"}
    assert subject_sizes(dataset, found) == {"computer science": 10, "law": 10}
    assert selection_text(dataset, found, 0) == "4 of 30, only computer science, law, 2 a subject, seed 0"
    with pytest.raises(DatasetError, match="'chess' is none of made"):
        select_questions(dataset, ["chess"])
