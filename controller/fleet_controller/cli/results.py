"""models, demo: what there is to run, and all of it on this machine."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(models)
    app.command()(demo)


def models(as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout.")) -> None:
    """List the model catalog."""
    from fleet_controller.cli.models_command import run_models

    run_models(as_json=as_json)


def demo(
    build: bool = typer.Option(False, "--build", help="Build llama.cpp from source where no binaries are found."),
    keep: bool = typer.Option(False, "--keep", help="Leave the demo's hosts running, and say where."),
) -> None:
    """See all of it on this machine: two local hosts, a tiny model, no GPU, no SSH, no model hub."""
    from fleet_controller.demo.run import run_demo

    run_demo(build=build, keep=keep)
