"""artifacts list | verify | gc."""

import typer

app = typer.Typer(
    help="Model files that hosts hold: who uses them, whether they are right, and taking away what nobody uses.",
    no_args_is_help=True,
)
HOSTS = typer.Option(
    "all", "--hosts", "-H", metavar="PATTERN", help="Hosts: names, globs (gpu*), @groups, !exclusions, commas."
)
JSON = typer.Option(False, "--json", help="One JSON document on stdout.")


@app.command("list")
def list_(
    model: str = typer.Argument("", metavar="[TEXT]", help="Only repositories that contain this."),
    hosts: str = HOSTS,
    as_json: bool = JSON,
) -> None:
    """Models in each host's Hugging Face cache, with size and users."""
    from fleet_controller.cli.artifacts_command import run_list

    run_list(model, hosts, as_json)


@app.command()
def verify(
    repository: str = typer.Argument("", metavar="[REPOSITORY]", help="owner/name; everything where not given."),
    hosts: str = HOSTS,
    as_json: bool = JSON,
) -> None:
    """Hash the files again and compare with the hub's hashes, which are their names in the cache."""
    from fleet_controller.cli.artifacts_command import run_verify

    run_verify(repository, hosts, as_json)


@app.command()
def gc(
    repositories: list[str] = typer.Argument(  # noqa: B008 - how typer declares an argument
        None,
        metavar="[REPOSITORY]...",
        help="owner/name, also of what fleet did not bring; everything that fleet brought where none is given.",
    ),
    hosts: str = HOSTS,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would go, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = JSON,
) -> None:
    """Remove model files that no service uses, not even a stopped one, after showing them.

    What the undo of a service's last rollout goes back to is removed only where it is named.
    """
    from fleet_controller.cli.artifacts_command import GcOptions, run_gc

    run_gc(GcOptions(tuple(repositories or ()), hosts, dry_run, yes, as_json))
