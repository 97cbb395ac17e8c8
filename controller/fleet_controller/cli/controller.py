"""controller start | stop | status."""

import typer

app = typer.Typer(
    help="Keep a controller running: connections stay warm, and work outlives the terminal.", no_args_is_help=True
)
JSON = typer.Option(False, "--json", help="One JSON document on stdout.")


@app.command()
def start(as_json: bool = JSON) -> None:
    """Start the resident controller; does nothing where it runs."""
    from fleet_controller.cli.controller_command import run_start

    run_start(as_json=as_json)


@app.command()
def stop(as_json: bool = JSON) -> None:
    """Stop the resident controller; models and jobs on the hosts go on."""
    from fleet_controller.cli.controller_command import run_stop

    run_stop(as_json=as_json)


@app.command()
def status(as_json: bool = JSON) -> None:
    """Say whether it runs, since when, and how many connections are warm."""
    from fleet_controller.cli.controller_command import run_status

    run_status(as_json=as_json)
