"""Reports as tests need them: the notes' rows beside measured ones with samples, and names that are HTML."""

import re
from collections.abc import Sequence

from fleet_controller.benchmarking.suites import SHIPPED, Suite, read_suite
from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.html.content import Material, Question, Report, build_report
from fleet_controller.results.html.page import render
from fleet_controller.results.html.repeating import KnownNames
from fleet_controller.results.matrix import Entry
from fleet_controller.results.reference_files import load_reference
from support.notes_reference import notes_files
from support.result_rows import decode

NOW = 1_790_000_000_000
HOSTILE_HOST, HOSTILE_MODEL = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>'
HOSTILE_COMMAND = "llama-bench -m '</code></pre><script>alert(3)</script>'"
SUITES: tuple[Suite, ...] = tuple(read_suite(path) for path in sorted(SHIPPED.glob("*.yaml")))
NAMES = KnownNames(SUITES, frozenset({"qwen3.5-4b", "qwen3.5-9b"}))


def entries(rows: Sequence[Result]) -> list[Entry]:
    return [Entry(number, row) for number, row in enumerate(rows, start=1)]


def measured_rows() -> list[Result]:
    """Two builds of one model on gpu1 at two depths, with the single repetitions; and a host and a model of HTML."""
    common = {"driver_version": "570.86", "power_limit_watts": 450.0, "persistence_mode": True, "suite": "notes"}
    rows = [
        decode(
            speed * 0.9 if depth else speed,
            1.0,
            run_id=f"run-{build}",
            backend_version=build,
            depth=depth,
            samples=(speed - 1, speed, speed + 1),
            finished_unix_ms=NOW - 3_600_000,
            **common,
        )
        for build, speed in (("b8396", 100.0), ("b9000", 130.0))
        for depth in (0, 8192)
    ]
    hostile = {"host": HOSTILE_HOST, "model": HOSTILE_MODEL, "run_id": "run-html", "artifact": "/m/<b>.gguf"}
    return [*rows, decode(12.0, 0.5, concurrency=1, **hostile), decode(20.0, 0.5, concurrency=4, **hostile)]


def material() -> Material:
    reference, runs = load_reference(notes_files())
    samples = [
        DeviceSample(run_id="run-b9000", unix_ms=NOW + second, power_watts=300.0 + second, throttle_reasons="thermal")
        for second in range(3)
    ]
    own_runs = [Run(run_id="run-html", command=HOSTILE_COMMAND), Run(run_id="run-b9000", command="llama-bench -d 0")]
    return Material(
        entries=entries([*reference, *measured_rows()]),
        runs=[*runs, *own_runs],
        device_samples=samples,
        experts={"glm-4.7-flash": True},
        names=NAMES,
    )


def report(question: Question | None = None) -> Report:
    return build_report(material(), question or Question(), NOW)


def page_of(rows: Sequence[Result], question: Question | None = None) -> str:
    return render(build_report(Material(entries(rows), names=NAMES), question or Question(), NOW))


def text_of(html: str) -> str:
    """What a reader sees, roughly: without tags, style and script."""
    from html import unescape

    bare = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", bare)).split())
