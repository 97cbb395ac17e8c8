"""`fleet matrix --format html` and `--output` as a user types them."""

import os
import pty
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_cli import COMMAND, FleetCli

SAMPLES = Path(__file__).parents[1] / "results" / "data" / "samples"


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[FleetCli]:
    made = FleetCli(tmp_path)
    yield made
    made.close()


def test_the_report_goes_to_the_file_and_says_where(cli: FleetCli, tmp_path: Path) -> None:
    cli.ok("results", "import", str(SAMPLES / "llama-bench.json"), "--host", "box<1>", "--model", "tiny")
    target = tmp_path / "lab.html"
    target.write_text("an older report")
    shown = cli.ok("matrix", "--format", "html", "--hosts", "box*,rtx*", "-o", str(target))
    assert shown.output == ""
    assert f"158 results are in {target}" in shown.errors  # 152 of the notes, 6 of the file
    html = target.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and html.endswith("</html>\n")
    assert "Only: hosts box*,rtx*" in html
    assert "box&lt;1&gt;" in html and "box<1>" not in html
    assert "apple-m4" not in html
    assert "fleet</span> <span>bench</span> <span>tiny</span>" in html
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600
    assert [path.name for path in tmp_path.glob("*.html")] == ["lab.html"]
    assert not list(tmp_path.glob("tmp*"))


def test_a_pipe_gets_the_report_and_a_terminal_a_file(cli: FleetCli, tmp_path: Path) -> None:
    piped = cli.ok("matrix", "qwen3.5-27b", "--format", "html")
    assert piped.output.startswith("<!doctype html>")
    assert piped.errors == ""
    ours, theirs = pty.openpty()
    finished = subprocess.run(
        [*COMMAND, "matrix", "qwen3.5-27b", "--format", "html"],
        cwd=tmp_path,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(theirs)
    os.close(ours)
    assert f"8 results are in {tmp_path}/fleet-matrix.html" in finished.stderr
    assert (tmp_path / "fleet-matrix.html").read_text().count("<h1>") == 1


def test_what_cannot_be_written_is_said(cli: FleetCli, tmp_path: Path) -> None:
    missing = cli.run("matrix", "--format", "html", "-o", str(tmp_path / "no" / "such" / "m.html"))
    assert missing.code == 1
    assert "cannot be written: No such file or directory" in missing.errors and "next: " in missing.errors
    folder = cli.run("matrix", "--format", "html", "-o", str(tmp_path))
    assert folder.code == 1
    assert "cannot be written" in folder.errors
    table = cli.run("matrix", "-o", str(tmp_path / "m.txt"))
    assert table.code == 2
    assert "--output is for other formats than the table" in table.errors


def test_other_formats_go_to_files_too(cli: FleetCli, tmp_path: Path) -> None:
    target = tmp_path / "m.csv"
    shown = cli.ok("matrix", "--format", "csv", "-o", str(target))
    assert shown.errors == f"the matrix is in {target}\n"
    assert target.read_text() == cli.ok("matrix", "--format", "csv").output
    assert cli.ok("matrix", "--json", "--format", "html").document["metric"] == "tg"


def test_a_broken_suite_or_model_of_the_users_does_not_stop_a_report(cli: FleetCli) -> None:
    for folder in ("suites", "models"):
        (cli.folder / "config" / folder).mkdir()
        (cli.folder / "config" / folder / "broken.yaml").write_text("parts: [")
    assert "fleet matrix" in cli.ok("matrix", "--format", "html").output
