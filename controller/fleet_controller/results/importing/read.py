"""From a file's bytes to its rows: which format it is, and its reader."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from fleet_controller.results.importing import llama_bench, llama_benchy, own, serving
from fleet_controller.results.importing.model import BadLine, FileContext, ImportFailure, Reading, demand_told
from fleet_controller.results.importing.text import read_text

UNKNOWN = (
    "give what llama-bench, llama-benchy, mlx_lm, vllm bench serve, sglang.bench_serving or fleet results export wrote"
)


def read_files(files: list[tuple[FileContext, bytes]]) -> list[Reading]:
    """All files, or ImportFailure with every problem of all of them."""
    readings = [read_file(context, content) for context, content in files]
    problems = [problem for reading in readings for problem in reading.problems]
    if problems:
        raise ImportFailure(problems)
    return readings


def read_file(context: FileContext, content: bytes) -> Reading:
    """The rows of one file, and its problems."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reading = Reading(context, "")
        line = content.count(b"\n", 0, error.start) + 1
        reading.problem(line, "this is not text in UTF-8", "convert the file to UTF-8, or give the tool's own output")
        return reading
    reading = Reading(context, text)
    try:
        _read(reading, text.lstrip())
    except BadLine as bad:
        reading.problem(bad.line, bad.message, bad.remedy)
    if not reading.results and not reading.problems:
        reading.problem(0, "no results are found in it", UNKNOWN)
    demand_told(reading)
    return reading


def _read(reading: Reading, start: str) -> None:
    if start.startswith(("{", "[")):
        _read_json(reading)
    elif _is_csv(start):
        _read_csv(reading)
    else:
        read_text(reading)


def _is_csv(start: str) -> bool:
    header = next(csv.reader(io.StringIO(start)), [])
    return len(header) > 3 and bool({"avg_ts", "test_name", "test_kind"} & set(header))


def _read_json(reading: Reading) -> None:
    documents = list(_documents(reading.text))
    first = documents[0][1] if documents else None
    if len(documents) == 1 and isinstance(first, dict) and own.DOCUMENT_KEY in first:
        own.read_own_document(reading, first)
    elif len(documents) == 1 and isinstance(first, dict) and llama_benchy.is_document(first):
        llama_benchy.read_document(reading, first)
    else:
        _read_entries(reading, documents)


def _read_entries(reading: Reading, documents: list[tuple[int, Any, str]]) -> None:
    tests: list[tuple[int, Any]] = []
    for line, entry, text in documents:
        if serving.is_serving(entry):
            serving.read_serving(reading, line, entry, text)
        elif isinstance(entry, dict) and llama_bench.is_llama_bench(entry):
            tests.append((line, entry))
        else:
            reading.problem(line, "this entry is no result that fleet knows", UNKNOWN)
    if tests:
        llama_bench.read_entries(reading, tests)


def _documents(text: str) -> Iterator[tuple[int, Any, str]]:
    """(line, value, its text) of each value of a JSON or JSONL file; an array gives its elements. Raises BadLine."""
    decoder = json.JSONDecoder()
    array = text.lstrip().startswith("[")
    position = text.index("[") + 1 if array else 0
    closed = not array
    while True:
        position = _skip(text, position, " \t\r\n," if array else " \t\r\n")
        if position >= len(text):
            break
        if array and text[position] == "]":
            closed = True
            break
        line = text.count("\n", 0, position) + 1
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise BadLine(
                error.lineno, f"this is no JSON: {error.msg}", "the file is damaged or cut off: copy it again"
            ) from None
        yield line, value, text[position:end]
        position = end
    if not closed:
        raise BadLine(text.count("\n") + 1, "the list does not end", "the file is cut off: copy it again")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _read_csv(reading: Reading) -> None:
    reader = csv.DictReader(io.StringIO(reading.text.lstrip()))
    header = reader.fieldnames or []
    rows: list[tuple[int, dict[str, str]]] = []
    for row in reader:
        if None in row or None in row.values():
            what = f"this line has not the {len(header)} columns of the first"
            reading.problem(reader.line_num, what, "repair or remove it, then repeat")
        else:
            rows.append((reader.line_num, row))
    if own.is_own_row(dict.fromkeys(header, "")):
        own.read_own_rows(reading, rows)
    elif "avg_ts" in header:
        llama_bench.read_entries(reading, rows)
    else:
        llama_benchy.read_rows(reading, rows)
