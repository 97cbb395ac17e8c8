"""models, bench, matrix, demo: what there is to run, and what was measured."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(models)
    app.command()(bench)
    app.command()(matrix)
    app.command()(demo)


def models(as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout.")) -> None:
    """List the model catalog."""
    from fleet_controller.cli.models_command import run_models

    run_models(as_json=as_json)


def bench(
    model: str = typer.Argument(..., metavar="MODEL", help="Name of the service, as `fleet ps` shows it."),
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help="Names, globs, @groups, !exclusions."),
    prompt: int = typer.Option(512, "--prompt", min=1, help="Prompt tokens (prefill)."),
    generate: int = typer.Option(128, "--generate", min=1, help="Generated tokens (decode)."),
    repetitions: int = typer.Option(3, "--repetitions", "-r", min=1, help="Runs of each test."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Measure a deployed model with its engine's own benchmark, and keep the rows."""
    from fleet_controller.cli.results_command import BenchOptions, run_bench

    run_bench(BenchOptions(model, hosts, prompt, generate, repetitions, yes, as_json))


def matrix(
    model: str = typer.Argument("", metavar="[MODEL]", help="Only this model."),
    hosts: str = typer.Option("", "--hosts", "-H", metavar="GLOB", help="Only hosts recorded under such names."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show measured speeds: a row per model, quantization and backend, a column per host."""
    from fleet_controller.cli.results_command import run_matrix

    run_matrix(model, hosts, as_json=as_json)


def demo(
    build: bool = typer.Option(False, "--build", help="Build llama.cpp from source where no binaries are found."),
    keep: bool = typer.Option(False, "--keep", help="Leave the demo's hosts running, and say where."),
) -> None:
    """See all of it on this machine: two local hosts, a tiny model, no GPU, no SSH, no model hub."""
    from fleet_controller.demo.run import run_demo

    run_demo(build=build, keep=keep)
