"""apply, diff: the whole lab as one file."""

import typer

FILE = typer.Argument(
    "", metavar="[FILE]", help="What should run where; lab.yaml beside hosts.yaml where not given.", show_default=False
)


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(diff)
    app.command()(apply)


def diff(
    file: str = FILE,
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show what a lab file would change: keep, start, replace, stop. Changes nothing."""
    from fleet_controller.cli.lab_command import LabOptions, run_lab

    run_lab(LabOptions(file, dry_run=True, yes=False, as_json=as_json))


def apply(
    file: str = FILE,
    dry_run: bool = typer.Option(False, "--dry-run", help="As `fleet diff`."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Bring about what a lab file says, one rollout for each model.

    \b
    models:
      - model: glm-4.7-flash     # what is left out is chosen
        hosts: gpu*
        backend: llama.cpp
        backend_version: b11434  # named versions are pinned
        quantization: Q4_K_M
        context: 32768
    stop_others: false           # true: stop what the file does not name
    order:                       # as the options of `fleet deploy`
      wave: 25%
    """
    from fleet_controller.cli.lab_command import LabOptions, run_lab

    run_lab(LabOptions(file, dry_run=dry_run, yes=yes, as_json=as_json))
