"""bench: measure models on hosts."""

import typer


def register(app: typer.Typer) -> None:
    """Add this file's command to the application."""
    app.command()(bench)


def bench(
    models: list[str] = typer.Argument(  # noqa: B008 - how typer declares an argument
        None, metavar="[MODEL]...", help="Names of `fleet models`, name:quant, paths on the hosts, or running services."
    ),
    hosts: str = typer.Option("", "--hosts", "-H", metavar="PATTERN", help="Names, globs, @groups, !exclusions."),
    backend: str = typer.Option("", "--backend", "-b", help="Only these, with commas; else all that suit the host."),
    quantization: str = typer.Option("", "--quant", "-q", help="Only these, with commas; else all that fit."),
    suite: str = typer.Option("", "--suite", "-s", help="quick, notes, concurrency, energy, or one of yours."),
    client: str = typer.Option(
        "", "--client", help="llama-bench, mlx_lm.benchmark, llama-benchy, vllm-bench, sglang-bench."
    ),
    endpoint: str = typer.Option("", "--endpoint", metavar="HOST:PORT", help="A server that somebody else runs there."),
    repeat: int = typer.Option(1, "--repeat", min=1, help="Runs of each cell."),
    again: bool = typer.Option(False, "--again", help="Also what is measured already."),
    when_idle: bool = typer.Option(False, "--when-idle", help="Wait as long as it takes until the devices are idle."),
    pause_services: bool = typer.Option(
        False, "--pause-services", help="Stop our own models on the devices meanwhile; they come back, whoever dies."
    ),
    prompt: int | None = typer.Option(None, "--prompt", min=0, help="Prompt tokens instead of the suite's."),
    generate: int | None = typer.Option(None, "--generate", min=0, help="Generated tokens instead of the suite's."),
    repetitions: int | None = typer.Option(None, "--repetitions", "-r", min=1, help="Repetitions of each test."),
    repository: str = typer.Option("", "--repo", "--repository", help="Any repository of the model hub, owner/name."),
    backend_version: str = typer.Option("", "--backend-version", help="Another version than the pinned one."),
    engine_path: str = typer.Option("", "--engine-path", help="Folder on the hosts with binaries to use as they are."),
    offline: str = typer.Option("", "--offline", metavar="FOLDER", help="Folder on the hosts to install from."),
    tokenizer: str = typer.Option(
        "", "--tokenizer", help="For llama-benchy: a folder on the hosts with tokenizer.json, or a repository."
    ),
    to_decide: bool = typer.Option(
        False, "--to-decide", help="Run only what can still change which backend and quantization is best."
    ),
    goal: str = typer.Option("", "--goal", "-g", help="Decide by decode (as it is), prefill, latency or energy."),
    budget: float | None = typer.Option(
        None, "--budget", metavar="MINUTES", min=0.0, help="Decide within that time, by the plan's own estimate."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan with the exact commands, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Measure models while nothing else uses the devices, and keep the rows. Goes on where it was after a break."""
    from fleet_controller.cli.bench_command import BenchOptions, run_bench

    options = BenchOptions(
        models=tuple(models or ()),
        pattern=hosts,
        backend=backend,
        quantization=quantization,
        suite=suite,
        client=client,
        endpoint=endpoint,
        repeat=repeat,
        again=again,
        when_idle=when_idle,
        pause_services=pause_services,
        prompt_tokens=prompt,
        generation_tokens=generate,
        repetitions=repetitions,
        repository=repository,
        backend_version=backend_version,
        engine_path=engine_path,
        offline_folder=offline,
        tokenizer=tokenizer,
        to_decide=to_decide,
        goal=goal,
        budget_minutes=budget,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    run_bench(options)
