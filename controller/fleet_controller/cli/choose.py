"""choose: the best backend and quantization for each machine."""

import typer

from fleet_controller.cli.deploy import HOSTS_HELP, LARGEST_NUMBER


def register(app: typer.Typer) -> None:
    """Add this file's command to the application."""
    app.command()(choose)


def choose(
    context_of_command: typer.Context,
    models: list[str] = typer.Argument(  # noqa: B008 - how typer declares an argument
        None, metavar="[MODEL]...", help="Names of `fleet models`, name:quant, or paths on the hosts; several compare."
    ),
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    context: int | None = typer.Option(
        None,
        "--context",
        "-c",
        min=1,
        max=LARGEST_NUMBER,
        help="Context length in tokens; the model's own, or the longest that fits, where not given.",
    ),
    goal: str = typer.Option("decode", "--goal", "-g", help="decode, prefill, latency, throughput or energy."),
    quality_floor: float | None = typer.Option(
        None,
        "--quality-floor",
        help="Least score, in the unit of `fleet eval`: what is below or has none is ruled out.",
    ),
    depth: int = typer.Option(
        0, "--depth", min=0, max=LARGEST_NUMBER, help="Compare speeds behind so many tokens of context."
    ),
    repository: str = typer.Option("", "--repo", "--repository", help="Any repository of the model hub, owner/name."),
    explain: bool = typer.Option(False, "--explain", help="The reasons for every host; one host shows them anyway."),
    last_known: bool = typer.Option(False, "--last-known", help="Ask no host: choose from what is known of them."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show which backend and quantization suits each machine best, why, and what would change it. Changes nothing."""
    from fleet_controller.cli.choose_command import ChooseOptions, run_choose
    from fleet_controller.cli.empty_options import refuse_empty

    refuse_empty(context_of_command)
    run_choose(
        ChooseOptions(
            models=tuple(models or ()),
            pattern=hosts,
            context_length=context,
            goal=goal,
            quality_floor=quality_floor,
            depth=depth,
            repository=repository,
            explain=explain,
            last_known=last_known,
            as_json=as_json,
        )
    )
