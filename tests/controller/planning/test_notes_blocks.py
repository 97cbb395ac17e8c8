"""The table of blocks in docs/substitutions.md: every command of the notes is in one row, and each test is there."""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NOTES = ROOT.parent / "shared" / "lab-notes.md"
TEXT = (ROOT / "docs" / "substitutions.md").read_text(encoding="utf-8")
TABLE = re.compile(r"^\| (\d+)(?:-(\d+))? \| ([^|]+) \| ([^|]+) \| (.+) \|$", re.MULTILINE)
ROWS = [(int(row[1]), int(row[2] or row[1]), row[3], row[5]) for row in TABLE.finditer(TEXT)]
SHORT = dict(re.findall(r"`([PCLB])` is\s+`([^`]+)`", TEXT))
PROGRAMS = r"pipx|set -x|git clone|cmake|cp|curl|uv|uvx|llama-|\./llama\.cpp/|~/\.lmstudio/bin/lms"
COMMAND = re.compile(rf"(\$ )?([A-Z_0-9]+=\S+ )?(# if [^:]+: )?({PROGRAMS})(?=[ \w-])")
VARIABLE = re.compile(r"\s*• ([A-Z_]+)")
# What fleet does not do: these rows name no test, and no other may.
NOT_YET = {"MMLU-Pro"}


def commands() -> dict[int, str]:
    """The first line of each command (and variable) that the notes name, by line number."""
    lines = enumerate(NOTES.read_text(encoding="utf-8").splitlines(), start=1)
    return {number: line for number, line in lines if COMMAND.match(line) or VARIABLE.match(line)}


@pytest.mark.skipif(not NOTES.exists(), reason="the lab notes lie beside the checkout, and are not there")
def test_every_command_of_the_notes_is_in_exactly_one_row() -> None:
    found = commands()
    assert len(found) > 50
    rows = {number: [row for row in ROWS if row[0] <= number <= row[1]] for number in found}
    assert {found[number]: len(of) for number, of in rows.items() if len(of) != 1} == {}


@pytest.mark.skipif(not NOTES.exists(), reason="the lab notes lie beside the checkout, and are not there")
def test_every_row_has_a_command() -> None:
    numbers = commands()
    assert [row for row in ROWS if not any(row[0] <= number <= row[1] for number in numbers)] == []


def test_the_rows_do_not_overlap_and_follow_the_notes() -> None:
    assert len(ROWS) > 30 and set(SHORT) == {"P", "C", "L", "B"}
    ends = [(first, last) for first, last, _, _ in ROWS]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_the_test_of_a_row_is_there(row: tuple[int, int, str, str]) -> None:
    _, _, block, cell = row
    if cell.startswith("not yet: "):
        assert block in NOT_YET
        return
    named = re.match(r"`([\w./]+)::(test_\w+)(?:\[([^\]]+)\])?`", cell)
    assert named is not None, cell
    path = str(named[1])
    source = (ROOT / SHORT.get(path, path)).read_text(encoding="utf-8")
    functions = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    assert named[2] in functions
    if named[3]:
        assert f'"{named[3]}"' in source, f"no case {named[3]}"
