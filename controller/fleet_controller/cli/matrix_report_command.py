"""What `fleet matrix --format html` does."""

import sys
import time
from pathlib import Path

from fleet_controller.benchmarking.suites import SHIPPED, Suite, SuiteError, load_suite
from fleet_controller.cli.client import call
from fleet_controller.cli.matrix_command import MatrixOptions
from fleet_controller.cli.output_file import write_output
from fleet_controller.cli.results_list_command import fetch, known_sources
from fleet_controller.results.html.content import ROWS_MOST, Material, Question, build_report
from fleet_controller.results.html.page import render
from fleet_controller.results.html.repeating import KnownNames
from fleet_controller.results.matrix import METRICS
from fleet_controller.settings import Settings
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import Catalog, load_catalog
from fleet_inventory.paths import models_folder
from fleet_proto.v1 import controller_pb2

# More fingerprints than a report holds, so that it can choose; a bound for time and memory.
READ_MOST = 3 * ROWS_MOST
DEFAULT_FILE = "fleet-matrix.html"


def run_report(options: MatrixOptions, output: str) -> None:
    """Write the report: to the file, without one to where stdout leads, and from a terminal to DEFAULT_FILE."""
    fetched = call(fetch(_request(options)))
    catalog = _catalog()
    material = Material(
        entries=fetched.entries,
        runs=fetched.runs,
        device_samples=fetched.device_samples,
        left_out=fetched.left_out,
        experts={model.name.lower(): model.architecture.experts is not None for model in catalog.models},
        names=KnownNames(_suites(), frozenset(model.name.lower() for model in catalog.models)),
    )
    question = Question(METRICS[options.metric], options.depth, options.by, options.concurrency, _restrictions(options))
    report = build_report(material, question, int(time.time() * 1000))
    text = render(report)
    if not output and not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    target = output or DEFAULT_FILE
    write_output(target, text)
    size = f"{len(text.encode()) / 1e6:.1f} MB"
    print(
        f"{len(report.entries)} results are in {Path(target).resolve()} ({size}); open it in a browser", file=sys.stderr
    )
    if report.left_out:
        print(f"{report.left_out} older ones are left out; name models or --hosts to see them", file=sys.stderr)


def _request(options: MatrixOptions) -> controller_pb2.ListResultsRequest:
    """Every metric and depth."""
    return controller_pb2.ListResultsRequest(
        pattern=options.hosts,
        models=options.models,
        clients=[options.client] if options.client else [],
        sources=known_sources((options.source,)) if options.source else [],
        newest=READ_MOST,
        one_per_fingerprint=True,
        with_runs=True,
    )


def _restrictions(options: MatrixOptions) -> tuple[str, ...]:
    named = {
        "models": " ".join(options.models),
        "hosts": options.hosts,
        "client": options.client,
        "source": options.source,
        "matrix and charts: requests at once": str(options.concurrency) if options.concurrency != 1 else "",
    }
    return tuple(f"{name} {value}" for name, value in named.items() if value)


def _catalog() -> Catalog:
    """A broken description of the user's own is no reason to show no results."""
    try:
        return load_catalog([models_folder()])
    except CatalogError:
        return load_catalog()


def _suites() -> tuple[Suite, ...]:
    """The shipped ones and the user's own that can be read."""
    own = Settings.from_environment().hosts_file.parent / "suites"
    names = sorted({path.stem for folder in (SHIPPED, own) if folder.is_dir() for path in folder.glob("*.yaml")})
    suites: list[Suite] = []
    for name in names:
        try:
            suites.append(load_suite(name, own))
        except SuiteError:
            continue
    return tuple(suites)
