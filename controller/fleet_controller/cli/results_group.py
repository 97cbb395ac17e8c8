"""results, matrix: what was measured, compared, and taken in and out."""

import typer

HOSTS_HELP = "Only these hosts, as recorded: names, globs, @groups, !exclusions."
MATRIX_MODELS = typer.Argument(None, metavar="[MODEL]...", help="Only these models.")
MODEL = typer.Option(None, "--model", "-m", help="Only this model; may be repeated.")
BACKEND = typer.Option(None, "--backend", "-b", help="Only this backend; may be repeated.")
QUANT = typer.Option(None, "--quant", "-q", help="Only this quantization; may be repeated.")
SUITE = typer.Option(None, "--suite", help="Only this suite; may be repeated.")
SOURCE = typer.Option(None, "--source", help="measured, reference or imported; may be repeated.")
FILES = typer.Argument(..., metavar="FILE...", help="Files to read; - is standard input.")
app = typer.Typer(no_args_is_help=True, help="What was measured: list, show, compare, import and export results.")


def register(parent: typer.Typer) -> None:
    """Add this file's commands to the application."""
    parent.command()(matrix)
    parent.add_typer(app, name="results")


def matrix(
    models: list[str] | None = MATRIX_MODELS,
    metric: str = typer.Option(
        "tg",
        "--metric",
        metavar="METRIC",
        help="tg (decode), pp (prefill), ttft (time to first token) or energy (J per token).",
    ),
    depth: int = typer.Option(0, "--depth", "-d", min=0, help="Tokens in the context before the test."),
    by: str = typer.Option("host", "--by", metavar="host|chip", help="What a column is."),
    form: str = typer.Option("table", "--format", metavar="FORMAT", help="table, md, csv, json or html."),
    output: str = typer.Option(
        "", "--output", "-o", metavar="FILE", help="Write it there, in the place of what is there, not to stdout."
    ),
    hosts: str = typer.Option("", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    client: str = typer.Option("", "--client", help="Only what this tool measured: llama-bench, llama-benchy ..."),
    source: str = typer.Option("", "--source", help="Only measured, reference or imported rows."),
    concurrency: int = typer.Option(1, "--concurrency", min=1, help="Requests at once."),
    as_json: bool = typer.Option(False, "--json", help="As --format json."),
) -> None:
    """Show speeds: a row per model, quantization and backend, a column per machine.

    Of several results of a cell the newest counts, measured ones before imported ones before reference data.

    --format html is one file for a browser, a phone or a printer: every metric and depth, charts, a section a host, raw
    samples, and the commands to measure again. On a terminal it goes to fleet-matrix.html unless --output says where.
    """
    from fleet_controller.cli.matrix_command import MatrixOptions, run_matrix

    wanted = MatrixOptions(tuple(models or ()), metric, depth, by, hosts, client, source, concurrency)
    run_matrix(wanted, "json" if as_json else form, output)


@app.command("list")
def list_command(
    hosts: str = typer.Option("", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    model: list[str] | None = MODEL,
    backend: list[str] | None = BACKEND,
    quant: list[str] | None = QUANT,
    suite: list[str] | None = SUITE,
    since: str = typer.Option("", "--since", metavar="WHEN", help="A date (2026-11-24) or an age (12h, 7d, 2w)."),
    source: list[str] | None = SOURCE,
    limit: int = typer.Option(50, "--limit", min=0, help="Only so many of the newest; 0 = all."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """List results, the newest last."""
    from fleet_controller.cli.results_list_command import ResultFilter, run_list

    wanted = ResultFilter.of(hosts, model, backend, quant, suite, since, source)
    run_list(wanted, limit, as_json=as_json)


@app.command()
def show(
    result_id: int = typer.Argument(..., metavar="ID", help="As `fleet results list` shows it."),
    raw: bool = typer.Option(False, "--raw", help="Only what the tool printed."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show one result in full: fingerprint, samples, command, raw output, and what the devices did meanwhile."""
    from fleet_controller.cli.results_show_command import run_show

    run_show(result_id, raw=raw, as_json=as_json)


@app.command()
def quality(
    model: str = typer.Argument("", metavar="[MODEL]", help="Only this model, or this repository."),
    metric: str = typer.Option("", "--metric", help="Only mmlu_pro, perplexity or kl_divergence."),
    row_id: int = typer.Option(
        0, "--id", min=0, help="One score in full: subjects, what was cut off, others beside it."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout; with --id each answer, too."),
) -> None:
    """List what `fleet eval` found. Scores of different scales (protocol, version, data, settings) do not compare."""
    from fleet_controller.cli.results_quality_command import run_quality

    run_quality(model, metric, row_id, as_json=as_json)


@app.command("import")
def import_command(
    files: list[str] = FILES,
    host: str = typer.Option("", "--host", help="The machine that it was measured on."),
    chip: str = typer.Option("", "--chip", help='Its GPU or chip: "NVIDIA GeForce RTX 4090", "Apple M4".'),
    model: str = typer.Option("", "--model", "-m", help="Instead of what the file's names say."),
    quant: str = typer.Option("", "--quant", "-q", help="Instead of what the file's names say."),
    backend: str = typer.Option("", "--backend", "-b", help="llama.cpp, mlx-lm, sglang, vllm, lm-studio."),
    backend_version: str = typer.Option("", "--backend-version", help="The backend's version."),
    client_version: str = typer.Option("", "--client-version", help="The measuring tool's version."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Take in results from files: all of them or, where a line is not understood, none.

    Reads what llama-bench (json, jsonl, csv, md), llama-benchy (json, csv, md), mlx_lm benchmark, vllm bench serve and
    sglang.bench_serving wrote, and what `fleet results export` wrote. A file that is imported twice adds nothing.
    """
    from fleet_controller.cli.results_files_command import ImportOptions, run_import

    said = ImportOptions(host, chip, model, quant, backend, backend_version, client_version)
    run_import(files, said, as_json=as_json)


@app.command()
def export(
    form: str = typer.Option("json", "--format", metavar="FORMAT", help="csv, json, or md (as the tools print)."),
    hosts: str = typer.Option("", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    model: list[str] | None = MODEL,
    backend: list[str] | None = BACKEND,
    quant: list[str] | None = QUANT,
    suite: list[str] | None = SUITE,
    since: str = typer.Option("", "--since", metavar="WHEN", help="A date (2026-11-24) or an age (12h, 7d, 2w)."),
    source: list[str] | None = SOURCE,
    output: str = typer.Option("", "--output", "-o", metavar="FILE", help="Write it there instead of to stdout."),
) -> None:
    """Write results as CSV (a row each), JSON (with raw output and device samples) or the tools' own Markdown."""
    from fleet_controller.cli.results_files_command import run_export
    from fleet_controller.cli.results_list_command import ResultFilter

    wanted = ResultFilter.of(hosts, model, backend, quant, suite, since, source)
    run_export(wanted, form, output)


@app.command()
def compare(
    first: str = typer.Argument(..., metavar="A", help="Such as backend=llama.cpp,version=b8396,host=gpu1"),
    second: str = typer.Argument(..., metavar="B", help="As A."),
    all_metrics: bool = typer.Option(False, "--all", help="Also what only one tool measures: ttfr, est_ppt, peak ..."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Say of B against A, test by test, whether it is faster, slower, or no difference is shown.

    What A or B names may differ; everything else of a test must agree (host, model, quantization, backend, client,
    tokens, depth, concurrency). Names: host, chip, backend, version, commit, model, quant, client, suite, source,
    flags, driver, run. The interval is Welch's at 95 %.
    """
    from fleet_controller.cli.results_compare_command import run_compare

    run_compare(first, second, all_metrics=all_metrics, as_json=as_json)
