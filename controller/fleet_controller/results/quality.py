"""How good answers are: MMLU-Pro, perplexity and KL divergence by artifact, beside the speeds, with their store.

A score says something only beside scores of the same scale: metric, protocol and its version, and data set. Whoever
compares or ranks asks `quality_for`, which takes one scale for all artifacts and never mixes two.
"""

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from fleet_controller.choosing.options import Quality
from fleet_controller.domain.base import Frozen
from fleet_controller.state import StateDatabase

MMLU_PRO, PERPLEXITY, KL_DIVERGENCE = "mmlu_pro", "perplexity", "kl_divergence"
QualityMetric = Literal["mmlu_pro", "perplexity", "kl_divergence"]
TITLES = {MMLU_PRO: "MMLU-Pro", PERPLEXITY: "perplexity", KL_DIVERGENCE: "KL divergence"}
FINGERPRINT_HEX_DIGITS = 16

# As the migration creates it: never changed once released.
QUALITY_TABLE = """CREATE TABLE quality (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,
    host TEXT, model TEXT, repository TEXT, quantization TEXT, artifact_hash TEXT NOT NULL,
    backend TEXT, backend_version TEXT, metric TEXT NOT NULL, protocol TEXT, protocol_version TEXT,
    dataset TEXT, dataset_hash TEXT, selection TEXT, settings TEXT, score FLOAT, low FLOAT, high FLOAT, n INTEGER,
    cut_off INTEGER, subjects TEXT, raw TEXT, taken_unix_ms INTEGER)"""
QUALITY_INDEX = "CREATE INDEX idx_quality_artifact ON quality (artifact_hash, metric)"
_JSON_COLUMNS = frozenset({"subjects", "raw"})

Scale = tuple[str, str, str, str, str]


class SubjectScore(Frozen):
    """One line of the per-subject table: `correct` of `n` questions; `low` and `high` are the share's interval."""

    subject: str
    n: int
    correct: int
    low: float
    high: float

    @property
    def score(self) -> float:
        return self.correct / self.n if self.n else 0.0


class QualityRow(Frozen):
    """One score of one artifact, with its 95 % interval.

    mmlu_pro: the share of right answers, 0 to 1, more is better. perplexity: exp of nats per token, less is better.
    kl_divergence: nats per token against `raw["base_artifact_hash"]`, less is better. `n` counts questions, or tokens
    that were scored. `artifact_hash` is the sha256 as in the speeds' artifact_sha256. `selection` says which part of
    the data set was asked (questions a subject, seed); `settings` what else changes the score (sampling, token limit,
    context of perplexity). `cut_off` counts answers that the token limit ended.
    """

    run_id: str
    host: str
    model: str
    repository: str = ""
    quantization: str = ""
    artifact_hash: str
    backend: str = ""
    backend_version: str = ""
    metric: QualityMetric
    protocol: str
    protocol_version: str
    dataset: str = ""
    dataset_hash: str = ""
    selection: str = ""
    settings: str = ""
    score: float
    low: float
    high: float
    n: int
    cut_off: int = 0
    subjects: tuple[SubjectScore, ...] = ()
    raw: dict[str, Any] = Field(default_factory=dict)
    taken_unix_ms: int = 0

    @property
    def scale(self) -> Scale:
        """Rows of different scales are never compared."""
        return self.metric, self.protocol, self.protocol_version, self.dataset_hash, self.settings

    @property
    def scale_text(self) -> str:
        """ "MMLU-Pro (tiger 1)", "MMLU-Pro (lm-eval 0.4.13)"."""
        return f"{TITLES[self.metric]} ({self.protocol} {self.protocol_version})"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that makes two rows repetitions of one measurement."""
        said = [*self.scale, self.selection, self.artifact_hash, self.backend, self.backend_version]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:FINGERPRINT_HEX_DIGITS]


def best_scale(rows: Iterable[QualityRow]) -> Scale | None:
    """The MMLU-Pro scale on which most artifacts have a score; then that with more questions, then the newest."""
    by_scale: dict[Scale, list[QualityRow]] = defaultdict(list)
    for row in rows:
        if row.metric == MMLU_PRO:
            by_scale[row.scale].append(row)

    def weight(scale: Scale) -> tuple[int, int, int, Scale]:
        found = by_scale[scale]
        artifacts = len({row.artifact_hash for row in found})
        return artifacts, sum(row.n for row in found), max(row.taken_unix_ms for row in found), scale

    return max(by_scale, key=weight, default=None)


def row_for(rows: Iterable[QualityRow], artifact_hash: str) -> QualityRow | None:
    """The row that `quality_for` speaks of: of the best scale of all `rows`, the one with most questions."""
    rows = list(rows)
    scale = best_scale(rows)
    found = [row for row in rows if row.artifact_hash == artifact_hash and row.scale == scale]
    return max(found, key=lambda row: (row.n, row.taken_unix_ms, row.run_id), default=None)


def quality_for(rows: Iterable[QualityRow], artifact_hash: str) -> Quality | None:
    """The score of an artifact on the one scale taken for all `rows`; None where it has none there.

    Give the rows of all artifacts that are compared: the scale is chosen over all of them, so that two calls with the
    same rows never answer on two scales. Perplexity and KL divergence are never given: less is better there, and they
    compare quantizations of one model only.
    """
    row = row_for(rows, artifact_hash)
    return None if row is None else Quality(name=row.scale_text, score=row.score, low=row.low, high=row.high)


def create_quality(connection: sqlite3.Connection) -> None:
    connection.execute(QUALITY_TABLE)
    connection.execute(QUALITY_INDEX)


def save_quality(database: StateDatabase, row: QualityRow) -> bool:
    """Keep a row; False where this run is kept already, so that a resend is harmless."""
    values = {**row.model_dump(mode="json"), "fingerprint": row.fingerprint}
    columns = {name: _kept(name, value) for name, value in values.items()}
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    with database.transaction() as connection:
        before = connection.total_changes
        connection.execute(f"INSERT OR IGNORE INTO quality ({names}) VALUES ({marks})", tuple(columns.values()))
        return connection.total_changes > before


def load_quality(database: StateDatabase, model: str = "", metric: str = "") -> list[tuple[int, QualityRow]]:
    """(id, row), oldest first; `model` is compared without case with the model's and the repository's name."""
    reader = database.connection.execute(
        "SELECT * FROM quality WHERE (? = '' OR model = ? COLLATE NOCASE OR repository = ? COLLATE NOCASE)"
        " AND (? = '' OR metric = ?) ORDER BY taken_unix_ms, id",
        (model, model, model, metric, metric),
    )
    names = [column[0] for column in reader.description]
    return [_read(dict(zip(names, values, strict=True))) for values in reader]


def _read(values: dict[str, Any]) -> tuple[int, QualityRow]:
    read = {name: json.loads(value) if name in _JSON_COLUMNS else value for name, value in values.items()}
    return int(values["id"]), QualityRow.model_validate(read)


def _kept(name: str, value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if name in _JSON_COLUMNS else value
