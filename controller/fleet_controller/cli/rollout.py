"""rollout list | show | watch | pause | resume | abort | undo."""

import typer

app = typer.Typer(
    help="What deploys did, host by host: pause, resume and abort them, and bring back exactly what ran before.",
    no_args_is_help=True,
)
NUMBER = typer.Argument(
    None, metavar="[NUMBER]", min=1, help="Of `fleet rollout list`; the newest that fits if absent."
)
UNDONE_NUMBER = typer.Argument(None, metavar="[NUMBER]", min=1, help="Of `fleet rollout list`; the newest if absent.")
YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
JSON = typer.Option(False, "--json", help="One JSON document on stdout.")


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """The newest rollouts, and how each stands."""
    from fleet_controller.cli.rollout_command import run_list

    run_list(as_json)


@app.command()
def show(number: int | None = NUMBER, as_json: bool = JSON) -> None:
    """One rollout, host by host: what ran before, what was put there, what went wrong."""
    from fleet_controller.cli.rollout_command import run_show

    run_show(number, as_json)


@app.command()
def watch(number: int | None = NUMBER, as_json: bool = JSON) -> None:
    """Look on while a rollout goes its way, whoever carries it out; changes nothing."""
    from fleet_controller.cli.rollout_command import run_action

    run_action("watch", number, yes=True, as_json=as_json)


@app.command()
def pause(number: int | None = NUMBER, as_json: bool = JSON) -> None:
    """Begin no further host; those under way end first."""
    from fleet_controller.cli.rollout_command import run_action

    run_action("pause", number, yes=True, as_json=as_json)


@app.command()
def resume(number: int | None = NUMBER, yes: bool = YES, as_json: bool = JSON) -> None:
    """Go on with a rollout that was paused, stopped or cut off; hosts that failed or were away are tried again."""
    from fleet_controller.cli.rollout_command import run_action

    run_action("resume", number, yes=yes, as_json=as_json)


@app.command()
def abort(number: int | None = NUMBER, as_json: bool = JSON) -> None:
    """End a rollout where it stands: hosts under way end first, nothing is taken back."""
    from fleet_controller.cli.rollout_command import run_action

    run_action("abort", number, yes=True, as_json=as_json)


@app.command()
def undo(
    number: int | None = UNDONE_NUMBER,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would run again, and stop."),
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Bring back on every host exactly what ran before: engine version, files and flags."""
    from fleet_controller.cli.rollout_command import run_action

    run_action("undo", number, yes=yes, as_json=as_json, dry_run=dry_run)
