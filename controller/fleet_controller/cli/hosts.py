"""init, up, hosts, doctor: which machines there are and how they stand."""

import typer

PATTERN = typer.Argument("all", metavar="[PATTERN]", help="Hosts: names, globs (gpu*), @groups, !exclusions, commas.")


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(init)
    app.command()(up)
    app.command()(hosts)
    app.command()(doctor)


def init(
    from_ssh_config: bool = typer.Option(False, "--from-ssh-config", help="Take the hosts of ~/.ssh/config."),
    force: bool = typer.Option(False, "--force", help="Overwrite a hosts.yaml that is there."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Write a commented hosts.yaml to start from."""
    from fleet_controller.cli.init_command import run_init

    run_init(from_ssh_config=from_ssh_config, force=force, as_json=as_json)


def up(
    pattern: str = typer.Argument(
        ..., metavar="PATTERN", help="Hosts: names, globs (gpu*), @groups, !exclusions, commas."
    ),
    wheels: str = typer.Option("", "--wheels", help="Folder of wheels for the hosts' platforms (no internet there)."),
    fetch_wheels: bool = typer.Option(
        False, "--fetch-wheels", help="Fetch wheels here for each host's platform, and push them."
    ),
    transport: str = typer.Option("", "--transport", help="ssh, tls or local, where hosts.yaml should not decide."),
    force: bool = typer.Option(False, "--force", help="Install again even where the version is current."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask. Unknown host keys are asked about all the same."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would happen and stop."),
    manager: str = typer.Option("", "--manager", hidden=True, help="background: touch no service manager."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Install and start the agent on hosts."""
    from fleet_controller.cli.up_command import UpOptions, run_up

    run_up(UpOptions(pattern, wheels, fetch_wheels, transport, force, manager, yes, dry_run, as_json))


def hosts(
    pattern: str = PATTERN,
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
    cached: bool = typer.Option(False, "--cached", help="The last known facts, with their age; asks no host."),
) -> None:
    """Show the hosts' hardware and what is free on it, live."""
    from fleet_controller.cli.hosts_command import run_hosts

    run_hosts(pattern, as_json=as_json, cached=cached)


def doctor(
    pattern: str = PATTERN,
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Check this machine and every host; each failed check says what to do."""
    from fleet_controller.cli.doctor_command import run_doctor

    run_doctor(pattern, as_json=as_json)
