"""A section for each host: what is recorded of it, and its rows, one box for each run of a tool."""

from collections.abc import Iterable, Sequence
from typing import Any

from fleet_controller.results.columns import FINGERPRINT_COLUMNS, DeviationKind, Result, Source
from fleet_controller.results.device_spread import DEVICE_COLUMNS, device_spreads
from fleet_controller.results.figures import age, disturbance, figure
from fleet_controller.results.html.content import Report, row_id
from fleet_controller.results.html.markup import Content, Markup, scrolling_box, tag
from fleet_controller.results.html.repeating import repetition_of
from fleet_controller.results.matrix import Entry
from fleet_controller.results.statistics import interval_of
from fleet_controller.results.tools import decimals

NOT_RECORDED = "not recorded"
# What differs from test to test of one run, or stands in its heading.
TEST_COLUMNS = frozenset({"host", "test_kind", "prompt_tokens", "generation_tokens", "depth", "concurrency"})
HOST_FACTS = (
    ("Chip", "chip"),
    ("Devices", "device_count"),
    ("Driver", "driver_version"),
    ("CUDA or macOS", "runtime_version"),
    ("Operating system", "os_name"),
    ("Power limit", "power_limit_watts"),
    ("Persistence mode", "persistence_mode"),
)


def host_sections(report: Report) -> Markup:
    by_host: dict[str, list[Entry]] = {}
    for entry in report.entries:
        by_host.setdefault(entry.result.host, []).append(entry)
    return Markup("".join(_section(report, host, by_host[host]) for host in sorted(by_host)))


def _section(report: Report, host: str, entries: Sequence[Entry]) -> Markup:
    runs: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        runs.setdefault(_run_order(entry.result), []).append(entry)
    results = [entry.result for entry in entries]
    facts = [(name, _values(getattr(result, column) for result in results)) for name, column in HOST_FACTS]
    facts += [("Backends", _values(_engine(result) for result in results)), ("Rows", str(len(results)))]
    boxes = [_run(report, runs[key]) for key in sorted(runs)]
    return tag(
        "section",
        tag("h3", host or "unnamed host"),
        _definitions(facts),
        boxes,
        class_="host",
        id=report.anchors[host],
        data_host=host,
        data_group=True,
    )


def _run_order(result: Result) -> tuple[str, ...]:
    return result.model.lower(), result.quantization, result.backend, result.client, result.run_id


def _engine(result: Result) -> str:
    commit = f"({result.backend_commit})" if result.backend_commit not in ("", result.backend_version) else ""
    return " ".join(part for part in (result.backend, result.backend_version, commit) if part)


def _values(values: Iterable[Any]) -> str:
    """All that were seen, in the order in which they came."""
    return ", ".join(dict.fromkeys(text for value in values if (text := _text(value)))) or NOT_RECORDED


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else f"{value:g} W" if isinstance(value, float) else str(value)


def _definitions(facts: Iterable[tuple[str, Content]]) -> Markup:
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")


def _run(report: Report, entries: Sequence[Entry]) -> Markup:
    first = entries[0].result
    what = " ".join(part for part in (first.model, first.quantization) if part)
    heading = " · ".join(part for part in (what, _engine(first), _client(first)) if part)
    when = age(first.finished_unix_ms, report.now_unix_ms)
    about = [first.source.value, f"{when} old" if when else "", first.suite and f"suite {first.suite}"]
    return tag(
        "article",
        tag("h4", heading, " ", tag("small", " · ".join(part for part in about if part))),
        tag("p", f"{disturbance(first).capitalize()}.", class_="warning") if first.mean is None else "",
        scrolling_box(heading, _figures(entries)),
        tag("details", tag("summary", "Samples, commands, fingerprint"), _details(report, entries)),
        class_="run block",
        data_model=first.model.lower(),
        data_backend=first.backend,
        data_source=first.source.value,
        data_group=True,
    )


def _client(result: Result) -> str:
    """The tool, and its version where that is not the engine's."""
    version = "" if result.client_version == result.backend_version else result.client_version
    return f"{result.client} {version}".strip()


def _figures(entries: Sequence[Entry]) -> Markup:
    names = ("Test", "Figure", "Unit", "95 % interval of the mean", "Repetitions", "Row")
    head = tag("tr", [tag("th", name, scope="col") for name in names])
    rows = [_figure_row(entry) for entry in entries]
    caption = tag("caption", "Figures", class_="quiet")
    return tag("table", caption, tag("thead", head), tag("tbody", rows), class_="rows")


def _figure_row(entry: Entry) -> Markup:
    result = entry.result
    return tag(
        "tr",
        tag("th", result.test, scope="row"),
        tag("td", figure(result)),
        tag("td", result.unit),
        tag("td", _interval(result)),
        tag("td", result.repetitions or "-"),
        tag("td", entry.result_id),
        id=row_id(entry.result_id),
        tabindex=-1,
        data_depth=result.depth,
        data_row=True,
    )


def _interval(result: Result) -> str:
    """As the database has it, else worked out; "-" where too little is known."""
    low, high = result.confidence_low, result.confidence_high
    if low is None or high is None:
        found = interval_of(result)
        if found is None:
            return "-"
        low, high = found
    places = decimals(result.client)
    return f"{low:.{places}f} to {high:.{places}f}"


def _details(report: Report, entries: Sequence[Entry]) -> list[Markup]:
    results = [entry.result for entry in entries]
    shown = [*_samples(results), *_commands(report, results), *_provenance(results), *_fingerprint(results)]
    return [*shown, *_devices(report, results[0].run_id)]


def _samples(results: Sequence[Result]) -> list[Markup]:
    told = [result for result in results if result.samples]
    if not told:
        return [_title("Samples"), tag("p", "Nobody noted the single repetitions of this run.")]
    rows = [
        tag(
            "tr",
            tag("th", result.test, scope="row"),
            tag("td", ", ".join(f"{sample:g}" for sample in result.samples), class_="samples"),
            tag("td", _deviation(result)),
        )
        for result in told
    ]
    head = tag("tr", [tag("th", name, scope="col") for name in ("Test", "Each repetition", "Deviation")])
    table = tag("table", tag("caption", "Samples"), tag("thead", head), tag("tbody", rows), class_="rows")
    return [scrolling_box("Samples", table)]


def _deviation(result: Result) -> str:
    if result.deviation is None:
        return "-"
    divisor = "n" if result.deviation_kind is DeviationKind.POPULATION else "n − 1"
    return f"{result.deviation:.3g} (divided by {divisor})"


def _commands(report: Report, results: Sequence[Result]) -> list[Markup]:
    run = report.runs.get(results[0].run_id)
    again = repetition_of(results, run, report.names)
    shown = [_title("Measure it again"), _command(again.command)]
    if again.note:
        shown.append(tag("p", again.note))
    if again.suite_file:
        shown += [tag("p", "with this file as suites/again.yaml beside hosts.yaml:"), _code(again.suite_file)]
    for title, text in (
        ("The server, as it was started", run.server_command if run else ""),
        ("The tool, as it was started", run.command if run else ""),
    ):
        if text:
            shown += [_title(title), _command(text)]
    return shown


def _code(text: str) -> Markup:
    return tag("pre", tag("code", text), tabindex=0)


def _command(text: str) -> Markup:
    """Lines break between words, so that an option stays whole."""
    words = [tag("span", word) for word in text.split(" ")]
    return tag("pre", tag("code", [piece for word in words for piece in (" ", word)][1:]), class_="command", tabindex=0)


def _title(text: str) -> Markup:
    return tag("h5", text)


def _provenance(results: Sequence[Result]) -> list[Markup]:
    """Where rows come from that were not measured here."""
    if results[0].source is Source.MEASURED:
        return []
    places = list(dict.fromkeys(result.provenance for result in results if result.provenance))
    return [_title("From"), tag("p", ", ".join(places))] if places else []


def _fingerprint(results: Sequence[Result]) -> list[Markup]:
    """What the rows of a run have in common; what is unknown is left out."""
    columns = [name for name in FINGERPRINT_COLUMNS if name not in TEST_COLUMNS]
    facts = [(name.replace("_", " "), _values(getattr(result, name) for result in results)) for name in columns]
    artifact = _values(result.artifact for result in results)
    known = [(name, value) for name, value in [*facts, ("artifact", artifact)] if value != NOT_RECORDED]
    return [_title("Fingerprint"), _definitions(known)]


def _devices(report: Report, run_id: str) -> list[Markup]:
    spreads = device_spreads(report.device_samples.get(run_id, ()))
    if not spreads:
        return []
    names = ("Attempt", "Device", "Samples", *(title for title, _ in DEVICE_COLUMNS), "Throttled", "Foreign")
    head = tag("tr", [tag("th", name, scope="col") for name in names])
    rows = [
        tag(
            "tr",
            [
                tag("td", value or "-")
                for value in (
                    spread.attempt, str(spread.device_index), spread.count, *spread.columns,
                    ", ".join(spread.throttle_reasons), ", ".join(spread.foreign_processes),
                )
            ],
        )
        for spread in spreads
    ]  # fmt: skip
    caption = "The devices meanwhile, once a second: least / median / most"
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", rows), class_="rows")
    return [scrolling_box(caption, table)]
