"""Scores as people read them: one table of scores, and of each its subjects and what it says beside others."""

from collections.abc import Sequence
from typing import Any

from fleet_controller.cli.output import print_table

COLUMNS = ("HOST", "MODEL", "QUANT", "BACKEND", "SCORE", "95 % INTERVAL", "N", "SCALE", "SETTINGS")
SUBJECT_COLUMNS = ("SUBJECT", "RIGHT", "OF", "SCORE", "95 % INTERVAL")
UNITS = {"mmlu_pro": " %", "perplexity": "", "kl_divergence": " nat"}


def print_rows(rows: Sequence[dict[str, Any]], with_subjects: bool = True) -> None:
    """The rows of `fleet eval --json`; nothing where there is none."""
    if not rows:
        return
    print_table(COLUMNS, [score_cells(row) for row in rows])
    for row in rows:
        if row["subjects"] and with_subjects:
            print()
            print_table(SUBJECT_COLUMNS, [_subject_cells(subject) for subject in row["subjects"]])
        for line in remarks(row):
            print(line)


def score_cells(row: dict[str, Any]) -> tuple[str, ...]:
    engine = f"{row['backend']} {row['backend_version']}".strip()
    return (
        row["host"], row["model"], row["quantization"] or "-", engine, _figure(row, "score") + UNITS[row["metric"]],
        f"{_figure(row, 'low')} to {_figure(row, 'high')}", str(row["n"]), row["title"], row["settings"] or "-",
    )  # fmt: skip


def remarks(row: dict[str, Any]) -> list[str]:
    """What a figure alone would hide, and what it says beside others."""
    lines = []
    if row["metric"] == "mmlu_pro":
        lines.append(f"questions: {row['selection']}; data set {row['dataset']}, sha256 {row['dataset_hash'][:12]}")
    if row["cut_off"]:
        share = 100 * row["cut_off"] / row["n"]
        lines.append(
            f"{row['cut_off']} answers ({share:.0f} %) were cut off at {row['settings']}; --max-tokens N gives more"
        )
    if row.get("no_letter"):
        lines.append(f"{row['no_letter']} answers gave no letter and count as wrong")
    if row.get("refused"):
        lines.append(f"{row['refused']} questions were refused by the server and count as wrong")
    return lines + [said["text"] for said in row.get("comparisons", ())]


def _figure(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f}" if row["metric"] == "mmlu_pro" else f"{row[name]:.5g}"


def _subject_cells(subject: dict[str, Any]) -> tuple[str, ...]:
    share = 100 * subject["correct"] / subject["n"]
    interval = f"{100 * subject['low']:.0f} to {100 * subject['high']:.0f}"
    return subject["subject"], str(subject["correct"]), str(subject["n"]), f"{share:.1f} %", interval
