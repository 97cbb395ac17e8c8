"""How long the answers will take: as earlier answers of the model did, else from its measured speed."""

from fleet_controller.evaluating.protocols import Protocol
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.eval_model import Judged
from fleet_controller.results.quality import load_quality
from fleet_controller.results.store import Filter, select_results

# An answer with its steps of thought, of a model that does not think at length before it.
ANSWER_TOKENS = 500


def estimated(
    context: FleetContext, host: str, judged: Judged, protocol: Protocol, questions: int, workers: int
) -> tuple[float, str]:
    """(seconds, what that rests on); 0 where nothing is known."""
    earlier = [
        row
        for _, row in load_quality(context.database, judged.model, "mmlu_pro")
        if (row.host, row.backend, row.protocol) == (host, judged.backend, protocol.name)
        and row.raw.get("mean_seconds")
    ]
    if earlier:
        row = max(earlier, key=lambda one: (one.quantization == judged.quantization, one.taken_unix_ms))
        one = float(row.raw["mean_seconds"])
        return questions * one / max(workers, 1), f"as {row.n} earlier answers took, {one:.1f} s each"
    wanted = Filter(host_pattern=host, models=(judged.model,), backends=(judged.backend,), test_kinds=("tg",))
    speeds = [result.mean for _, result in select_results(context.database, wanted, newest=20) if result.mean]
    if speeds:
        speed = max(speeds)
        basis = (
            f"{ANSWER_TOKENS} tokens an answer at {speed:.1f} t/s as measured; a model that thinks takes several times"
        )
        return questions * ANSWER_TOKENS / speed, basis
    return (
        0.0,
        "unknown: no speed of this model is measured here; `fleet bench` does, and progress tells after a minute",
    )
