"""forward, endpoints: models' addresses on the user's machine."""

import typer

from fleet_controller.cli.deploy import HOSTS_HELP

MODELS = typer.Argument(None, metavar="MODEL...", help="Names as `fleet ps` shows them; all where none is given.")


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(forward)
    app.command()(endpoints)


def forward(
    model: str = typer.Argument("", metavar="MODEL", help="Name of the service, as `fleet ps` shows it."),
    hosts: str = typer.Option("all", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    port: int | None = typer.Option(
        None,
        "--port",
        "-p",
        min=1,
        max=65535,
        help="Port on this machine; else the server's own, or the next free one.",
    ),
    show: bool = typer.Option(False, "--list", help="Show the forwards of this machine; asks no host."),
    stop: bool = typer.Option(False, "--stop", help="End the forwards of MODEL, or with --all every one."),
    everything: bool = typer.Option(False, "--all", help="With --stop: every forward."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Bring a model's endpoint from its host to this machine through ssh, and keep it up."""
    from fleet_controller.cli.forward_command import ForwardOptions, run_forward

    run_forward(ForwardOptions(model, hosts, port, show, stop, everything, as_json))


def endpoints(
    models: list[str] | None = MODELS,
    hosts: str = typer.Option("all", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    form: str = typer.Option("table", "--format", "-f", help="table, json, litellm or openai-env."),
    as_json: bool = typer.Option(False, "--json", help="As --format json."),
) -> None:
    """Print the addresses at which models answer from this machine, each one tried."""
    from fleet_controller.cli.endpoints_command import run_endpoints

    run_endpoints(tuple(models or ()), hosts, "json" if as_json else form)
