"""Rows of quality from what hosts answered."""

import time
from collections import defaultdict
from typing import Any

from fleet_controller.evaluating import perplexity
from fleet_controller.evaluating.asking import Asking
from fleet_controller.evaluating.dataset import Dataset
from fleet_controller.evaluating.protocols import LM_EVAL, Protocol
from fleet_controller.evaluating.scores import score_of
from fleet_controller.evaluating.selection import subject_sizes
from fleet_controller.operations.eval_data import Corpus
from fleet_controller.operations.eval_model import Judged
from fleet_controller.operations.problems import OperationError
from fleet_controller.results.quality import KL_DIVERGENCE, MMLU_PRO, PERPLEXITY, QualityRow


def question_row(
    host: str,
    judged: Judged,
    protocol: Protocol,
    asking: Asking,
    dataset: Dataset,
    run_id: str,
    job_id: str,
    version: str,
    result: dict[str, Any],
) -> QualityRow:
    """Raises OperationError where a question has no answer."""
    outcome = result.get("outcome") or {}
    answers = _judged_answers(protocol, asking, outcome)
    tally = defaultdict[str, list[int]](lambda: [0, 0])
    for question in asking.questions:
        tally[question.category][0] += answers[question.name]["right"]
        tally[question.category][1] += 1
    found = {name: (right, count) for name, (right, count) in tally.items()}
    score = score_of(found, subject_sizes(dataset, asking.questions))
    seconds = [said["seconds"] for said in answers.values() if said["seconds"]]
    return QualityRow(
        run_id=run_id,
        host=host,
        model=judged.model,
        repository=judged.repository,
        quantization=judged.quantization,
        artifact_hash=_artifact_hash(result),
        backend=judged.backend,
        backend_version=version or judged.backend_version,
        metric=MMLU_PRO,
        protocol=protocol.name,
        protocol_version=protocol.version,
        dataset=dataset.name,
        dataset_hash=dataset.sha256,
        selection=asking.selection,
        settings=asking.settings,
        score=score.score,
        low=score.low,
        high=score.high,
        n=score.n,
        cut_off=sum(said["finish"] == "length" for said in answers.values()),
        subjects=score.subjects,
        raw={
            "state_key": result.get("state_key", ""),
            "job_id": job_id,
            "workers": asking.workers,
            "mean_seconds": round(sum(seconds) / len(seconds), 3) if seconds else None,
            "no_letter": sum(said["letter"] is None for said in answers.values()),
            "refused": sum("error" in said for said in answers.values()),
            "harness": outcome.get("harness"),
            "server": result.get("server_argv") or judged.base_url,
            "answers": answers,
        },
        taken_unix_ms=int(result.get("finished_unix_ms") or time.time() * 1000),
    )


def _judged_answers(protocol: Protocol, asking: Asking, outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each question whether it is right, and what there is to know of its answer. Where lm_eval scored, its word."""
    found = {str(answer["id"]): answer for answer in outcome.get("answers", ())}
    missing = [question.name for question in asking.questions if question.name not in found]
    if missing:
        message = f"{len(missing)} of {len(asking.questions)} questions have no answer"
        raise OperationError("eval-incomplete", message, "repeat the command: it asks only these")
    right = set(outcome["right"]) if protocol is LM_EVAL else None
    answers = {}
    for question in asking.questions:
        said = found[question.name]
        good = question.name in right if right is not None else said["found"] == question.answer
        told = {name: said[name] for name in ("finish", "tokens", "seconds")}
        more = {name: said[name] for name in ("error", "tail") if said[name]}
        answers[question.name] = {"right": int(good), "letter": said["found"], **told, **more}
    return answers


def perplexity_rows(
    host: str,
    judged: Judged,
    base_hash: str,
    corpus: Corpus,
    key: str,
    job_id: str,
    version: str,
    result: dict[str, Any],
) -> list[QualityRow]:
    """Perplexity and, where the run compared, KL divergence. Raises PerplexityError."""
    run_id = f"{key}-{_artifact_hash(result)[:12]}"
    printed = perplexity.parse(str(result.get("stdout", "")), str(result.get("stderr", "")))
    settings = f"{printed.chunks} chunks of {printed.context_tokens} tokens"
    common = {
        "host": host, "model": judged.model, "repository": judged.repository, "quantization": judged.quantization,
        "artifact_hash": _artifact_hash(result), "backend": judged.backend,
        "backend_version": version or judged.backend_version, "protocol": perplexity.PROTOCOL,
        "protocol_version": perplexity.VERSION, "dataset": corpus.name, "dataset_hash": corpus.sha256,
        "n": printed.tokens, "taken_unix_ms": int(result.get("finished_unix_ms") or time.time() * 1000),
    }  # fmt: skip
    raw = {"job_id": job_id, "stdout": result.get("stdout"), "stderr": result.get("stderr"), "argv": result.get("argv"),
           "runs": result.get("runs")}  # fmt: skip
    low, high = printed.perplexity.interval
    rows = [
        QualityRow(**common, run_id=f"{run_id}-ppl", metric=PERPLEXITY, settings=settings, raw=raw,
                   score=printed.perplexity.value, low=low, high=high)
    ]  # fmt: skip
    if printed.divergence is not None:
        low, high = printed.divergence.interval
        top = printed.same_top.value if printed.same_top else None
        rows.append(
            QualityRow(**common, run_id=f"{run_id}-kld", metric=KL_DIVERGENCE,
                       settings=f"{settings}, base {base_hash[:12]}", score=printed.divergence.value, low=max(low, 0.0),
                       high=high, raw={**raw, "base_artifact_hash": base_hash, "same_top": top})
        )  # fmt: skip
    return rows


def _artifact_hash(result: dict[str, Any]) -> str:
    artifacts = result.get("artifacts") or ()
    return str(artifacts[0]["sha256"]) if artifacts else ""
