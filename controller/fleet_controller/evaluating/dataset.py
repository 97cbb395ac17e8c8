"""MMLU-Pro's rows: read from a folder or from what a host printed, checked, and named by their content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleet_controller.domain.base import Frozen

NAME = "TIGER-Lab/MMLU-Pro"
LETTERS = "ABCDEFGHIJ"
SPLITS = ("test", "validation")
HASH_HEX_DIGITS = 16


class DatasetError(Exception):
    """Rows that cannot be used. `remedy` says what to do next."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = "dataset"
        self.message = message
        self.remedy = remedy


class Question(Frozen):
    """One row, with the data set's own names; `options` as they are there, "N/A" included."""

    question_id: int
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int
    category: str
    cot_content: str = ""
    src: str = ""

    @property
    def name(self) -> str:
        return str(self.question_id)


class Dataset(Frozen):
    """`sha256` is over the rows' content: the same rows have the same hash, from whatever file they came."""

    name: str
    test: tuple[Question, ...]
    validation: tuple[Question, ...]
    sha256: str

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({question.category for question in self.test}))


def dataset_of(name: str, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> Dataset:
    """Raises DatasetError for rows that are none of MMLU-Pro, or a subject without examples."""
    read = {split: tuple(_question(row, split, number) for number, row in enumerate(splits.get(split, ()), start=1))
            for split in SPLITS}  # fmt: skip
    for split in SPLITS:
        if not read[split]:
            raise DatasetError(f"{name} has no {split} rows", "it needs test and validation, as TIGER-Lab/MMLU-Pro has")
    ids = [question.question_id for question in read["test"]]
    if len(set(ids)) != len(ids):
        raise DatasetError(f"{name} has a question_id twice in its test rows")
    examples = {question.category for question in read["validation"]}
    lacking = sorted({question.category for question in read["test"]} - examples)
    if lacking:
        raise DatasetError(f"{name} has no validation rows of {', '.join(lacking)}", "each subject needs examples")
    text = json.dumps({split: [one.model_dump() for one in read[split]] for split in SPLITS}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Dataset(name=name, test=read["test"], validation=read["validation"], sha256=digest)


def _question(row: Mapping[str, Any], split: str, number: int) -> Question:
    try:
        question = Question.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DatasetError(f"{split} row {number}: {field}: {first['msg']}", "the columns of MMLU-Pro") from None
    wanted = LETTERS[question.answer_index] if 0 <= question.answer_index < len(question.options) <= 10 else ""
    if question.answer != wanted:
        raise DatasetError(f"{split} row {number}: answer {question.answer!r} is not option {question.answer_index}")
    return question


def read_folder(folder: Path) -> Dataset:
    """test*.json or .jsonl and validation*.json or .jsonl of a folder. Raises DatasetError."""
    splits = {split: [row for path in _files(folder, split) for row in _rows(path)] for split in SPLITS}
    return dataset_of(folder.name, splits)


def _files(folder: Path, split: str) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder", "--dataset FOLDER with test and validation rows")
    found = sorted(path for path in folder.rglob(f"{split}*") if path.suffix in (".json", ".jsonl"))
    if not found and any(folder.rglob(f"{split}*.parquet")):
        remedy = f"{NAME} itself comes from the hub without --dataset; other parquet: write it as JSON lines"
        raise DatasetError(f"{folder} holds {split} as parquet, which is read on hosts only", remedy)
    if not found:
        raise DatasetError(f"{folder} has no {split}*.json or {split}*.jsonl", "one JSON object a line, or one list")
    return found


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8").strip()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path} holds something else than rows")
    return list(rows)


def read_printed(name: str, lines: str) -> Dataset:
    """What `HUB_PROGRAM` printed: one {"split", "row"} a line. Raises DatasetError."""
    splits: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
    for line in lines.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            splits.setdefault(str(said["split"]), []).append(said["row"])
    return dataset_of(name, splits)


# Runs in lm_eval's environment on a host, which has pyarrow and the hub's client: argv is repository and revision.
HUB_PROGRAM = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download
from pyarrow import parquet
repository, revision = sys.argv[1:]
names = HfApi().list_repo_files(repository, revision=revision, repo_type="dataset")
for split in ("test", "validation"):
    for name in sorted(one for one in names if one.startswith("data/" + split) and one.endswith(".parquet")):
        path = hf_hub_download(repository, name, revision=revision, repo_type="dataset")
        for row in parquet.read_table(path).to_pylist():
            print(json.dumps({"split": split, "row": row}))
"""
