"""How tables, sizes, commands and wire messages look to a person or a script."""

import io
import re
import shlex
from collections.abc import Sequence

import pytest

from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import duration, gibibytes, print_table, shell_quoted
from fleet_proto.v1 import controller_pb2


def test_piped_tables_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    print_table(("HOST", "WHAT"), [("a", long), ("主机", "y")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["HOST  WHAT", f"a     {long}", "主机  y"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on_terminal(rows: Sequence[tuple[str, ...]], width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    print_table(rows[0], rows[1:], {"ready": "32"}, terminal)
    return re.sub(r"\x1b\[\d*m", "", terminal.getvalue()).splitlines()


SERVICES = [
    ("HOST", "MODEL", "STATE", "ENDPOINT", "WHY"),
    ("desk", "tiny-f16", "ready", "http://127.0.0.1:19100/v1", "already runs exactly so on port 19100 (ready)"),
    ("主机", "m", "ready", "-", "-"),
]


def test_a_row_goes_on_in_further_lines_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_on_terminal(SERVICES, 60, monkeypatch) == [
        "HOST  MODEL     STATE  ENDPOINT",
        "  WHY",
        "desk  tiny-f16  ready  http://127.0.0.1:19100/v1",
        "  already runs exactly so on port 19100 (ready)",
        "主机  m         ready  -",
        "  -",
    ]


def test_the_last_column_is_wrapped_where_it_has_some_room(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_on_terminal(SERVICES, 80, monkeypatch)
    assert lines[1:3] == [
        "desk  tiny-f16  ready  http://127.0.0.1:19100/v1  already runs exactly so on",
        "                                                  port 19100 (ready)",
    ]


def test_a_word_that_fits_nowhere_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/" + "x" * 100
    lines = shown_on_terminal([("WHERE", "WHAT"), ("desk", f"free in {path}")], 40, monkeypatch)
    assert lines == ["WHERE  WHAT", "desk   free in", f"       {path}"]


def test_commands_survive_a_shell() -> None:
    line = shell_quoted(["serve", "--name", "it's $HOME"], [("A", "b c")])
    assert line == """A='b c' serve --name 'it'"'"'s $HOME'"""
    assert shlex.split(line) == ["A=b c", "serve", "--name", "it's $HOME"]


@pytest.mark.parametrize(
    ("size", "text"), [(None, "?"), (0, "0 KiB"), (5 << 20, "5 MiB"), (3 << 29, "1.5 GiB"), (24 << 30, "24.0 GiB")]
)
def test_sizes(size: int | None, text: str) -> None:
    assert gibibytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (300, "5 min"), (18000, "5 h"), (200000, "2 d")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_unknown_and_zero_differ_in_json() -> None:
    host = controller_pb2.HostPlan(host="a", action=controller_pb2.PLAN_ACTION_KEEP, download_bytes=0)
    document = plain(host)
    assert document["free_bytes"] is None
    assert document["download_bytes"] == 0
    assert document["action"] == "keep"
    host.free_bytes = 0
    assert plain(host)["free_bytes"] == 0
