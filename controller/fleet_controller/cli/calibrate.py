"""calibrate: make the speed predictions of hosts good."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's command to the application."""
    app.command()(calibrate)


def calibrate(
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help="Names, globs, @groups, !exclusions."),
    models: list[str] = typer.Option(  # noqa: B008 - how typer declares an option
        None, "--model", "-m", metavar="MODEL", help="Show what becomes of the predictions for this model."
    ),
    again: bool = typer.Option(False, "--again", help="Also what is calibrated already."),
    when_idle: bool = typer.Option(False, "--when-idle", help="Wait as long as it takes until the devices are idle."),
    pause_services: bool = typer.Option(
        False, "--pause-services", help="Stop our own models on the devices meanwhile; they come back, whoever dies."
    ),
    backend_version: str = typer.Option("", "--backend-version", help="Another llama.cpp than the pinned one."),
    engine_path: str = typer.Option("", "--engine-path", help="Folder on the hosts with binaries to use as they are."),
    offline: str = typer.Option("", "--offline", metavar="FOLDER", help="Folder on the hosts to install from."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan with the exact commands, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Measure a host for about a minute with models that it makes up, so that speeds are predicted well there.

    Nothing is downloaded but llama.cpp where it is missing; the made-up models (about 1 GB on a GPU) are removed
    afterwards. What is calibrated already under the same versions is skipped.
    """
    from fleet_controller.cli.calibrate_command import CalibrateOptions, run_calibrate

    options = CalibrateOptions(
        pattern=hosts,
        models=tuple(models or ()),
        again=again,
        when_idle=when_idle,
        pause_services=pause_services,
        backend_version=backend_version,
        engine_path=engine_path,
        offline_folder=offline,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    run_calibrate(options)
