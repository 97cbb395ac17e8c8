"""pull, import: a model's files onto hosts, fetched once and passed on from host to host."""

import typer

HOSTS_HELP = "Hosts: names, globs (gpu*), @groups, !exclusions, commas."
RATE_HELP = "At most so many bytes a second in and out of each host, as in 50MB; no limit where not given."


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(pull)
    app.command("import")(import_)


def pull(
    context_of_command: typer.Context,
    model: str = typer.Argument("", metavar="[MODEL]", help="A name of `fleet models`, or name:quant."),
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    quantization: str = typer.Option(
        "", "--quant", "-q", help="Q4_K_M, 4bit, ...; what `fleet deploy` would take on each host where not given."
    ),
    repository: str = typer.Option("", "--repo", "--repository", help="Any repository of the model hub, owner/name."),
    backend: str = typer.Option("", "--backend", "-b", help="Only formats that this backend takes."),
    source: str = typer.Option(
        "",
        "--from",
        metavar="SOURCE",
        help="host:NAME (it has the model), host:NAME:/folder, or the URL of a mirror; the hub where not given.",
    ),
    rate: str = typer.Option("", "--rate", metavar="SIZE", help=RATE_HELP),
    stop: bool = typer.Option(False, "--stop", help="End the same pull where it runs; what has arrived stays."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Bring a model's files to hosts: from the hub once, then from host to host while they still arrive.

    Every piece is verified, and every file has the hub's hash before it is in place. Ctrl-C detaches; the same command
    goes on where it was, and with --stop ends it.
    """
    from fleet_controller.cli.empty_options import refuse_empty
    from fleet_controller.cli.pull_command import PullOptions, run_pull

    refuse_empty(context_of_command)
    run_pull(
        PullOptions(
            model=model,
            pattern=hosts,
            quantization=quantization,
            repository=repository,
            backend=backend,
            source=source,
            rate=rate,
            stop=stop,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    )


def import_(
    context_of_command: typer.Context,
    folder: str = typer.Argument(
        ..., metavar="FOLDER", help="With a model's files: on this machine, or HOST:/folder on one of the hosts."
    ),
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    repository: str = typer.Option(
        ..., "--repo", "--repository", help="The hub repository that the files are of, owner/name."
    ),
    rate: str = typer.Option("", "--rate", metavar="SIZE", help=RATE_HELP),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Bring a folder of model files into the lab, without any hub.

    Hashes that `hf download --local-dir` noted in the folder are held to; without them the files are named by their
    content.
    """
    from fleet_controller.cli.empty_options import refuse_empty
    from fleet_controller.cli.pull_command import PullOptions, run_pull

    refuse_empty(context_of_command)
    run_pull(
        PullOptions(
            pattern=hosts,
            repository=repository,
            folder=folder,
            rate=rate,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    )
