"""agent status | upgrade | restart | remove | revoke."""

import typer

app = typer.Typer(
    help="Look after the agents themselves: models go on running, except where an agent is removed.",
    no_args_is_help=True,
)
PATTERN = typer.Argument(..., metavar="PATTERN", help="Hosts: names, globs (gpu*), @groups, !exclusions, commas.")
YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
JSON = typer.Option(False, "--json", help="One JSON document on stdout.")


@app.command()
def status(
    pattern: str = typer.Argument("all", metavar="[PATTERN]", help="Hosts: names, globs, @groups, !exclusions."),
    as_json: bool = JSON,
) -> None:
    """Version and state of the agents."""
    from fleet_controller.cli.agent_command import run_agent_action

    run_agent_action("status", pattern, yes=True, as_json=as_json)


@app.command()
def upgrade(pattern: str = PATTERN, yes: bool = YES, as_json: bool = JSON) -> None:
    """Install this fleet's agent beside the old one and switch; a broken one goes back by itself."""
    from fleet_controller.cli.agent_command import run_agent_action

    run_agent_action("upgrade", pattern, yes=yes, as_json=as_json)


@app.command()
def restart(pattern: str = PATTERN, yes: bool = YES, as_json: bool = JSON) -> None:
    """Restart the agents; models and jobs go on."""
    from fleet_controller.cli.agent_command import run_agent_action

    run_agent_action("restart", pattern, yes=yes, as_json=as_json)


@app.command()
def remove(
    pattern: str = PATTERN,
    purge: bool = typer.Option(False, "--purge", help="Engines, journal and jobs as well; model files stay."),
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Stop the agents and take them off the hosts."""
    from fleet_controller.cli.agent_command import run_agent_action

    run_agent_action("remove", pattern, yes=yes, as_json=as_json, purge=purge)


@app.command()
def revoke(pattern: str = PATTERN, yes: bool = YES, as_json: bool = JSON) -> None:
    """Let a host's certificate for transport tls count no more; asks no host. `fleet up` gives it another, over SSH."""
    from fleet_controller.cli.agent_command import run_agent_action

    run_agent_action("revoke", pattern, yes=yes, as_json=as_json)
