"""eval: how good a model's answers are."""

import typer

SUBJECTS = typer.Option(
    None, "--subject", "--subjects", help="Only these, with commas, or repeated; by their beginning."
)


def register(app: typer.Typer) -> None:
    """Add this file's command to the application."""
    app.command("eval")(evaluate)


def evaluate(
    models: list[str] = typer.Argument(  # noqa: B008 - how typer declares an argument
        None, metavar="[MODEL]...", help="Names of `fleet models`, name:quant, paths on the hosts, or running services."
    ),
    hosts: str = typer.Option("", "--hosts", "-H", metavar="PATTERN", help="Names, globs, @groups, !exclusions."),
    protocol: str = typer.Option(
        "lm-eval", "--protocol", help="lm-eval, or tiger (TIGER-AI-Lab's evaluate_from_apiX.py). Scores do not compare."
    ),
    subjects: list[str] | None = SUBJECTS,
    questions: int = typer.Option(0, "--questions", "-n", min=0, help="So many, alike of each subject; else 280."),
    everything: bool = typer.Option(False, "--all", help="Every question of the data set."),
    workers: int = typer.Option(0, "--workers", "-w", min=0, help="Questions at once; else the server's slots."),
    max_tokens: int = typer.Option(0, "--max-tokens", min=0, help="Of an answer, thinking included."),
    seed: int = typer.Option(0, "--seed", min=0, help="Which questions are taken."),
    dataset: str = typer.Option(
        "", "--dataset", metavar="FOLDER", help="test and validation as JSON, instead of the hub's."
    ),
    deploy: bool = typer.Option(
        False, "--deploy", help="Where no service is ready: a server for this evaluation only."
    ),
    quantization: str = typer.Option("", "--quant", "-q", help="Only these, with commas."),
    perplexity: bool = typer.Option(
        False, "--perplexity", help="llama.cpp: perplexity, and KL divergence against the highest precision."
    ),
    base: str = typer.Option("", "--base", help="With --perplexity: compare with this quantization instead."),
    corpus: str = typer.Option("", "--corpus", metavar="FILE", help="With --perplexity: a text; else wikitext-2."),
    chunks: int = typer.Option(0, "--chunks", min=0, help="With --perplexity: of the corpus; else 64."),
    context: int = typer.Option(0, "--context", "-c", min=0, help="Tokens of a server made for this, or of a chunk."),
    backend: str = typer.Option("", "--backend", "-b", help="Only services of this one, or a server of it."),
    repository: str = typer.Option("", "--repo", "--repository", help="Any repository of the model hub, owner/name."),
    backend_version: str = typer.Option("", "--backend-version", help="Another version than the pinned one."),
    engine_path: str = typer.Option("", "--engine-path", help="Folder on the hosts with binaries to use as they are."),
    offline: str = typer.Option("", "--offline", metavar="FOLDER", help="Folder on the hosts to install from."),
    pause_services: bool = typer.Option(
        False, "--pause-services", help="Stop our own models on the devices meanwhile; they come back, whoever dies."
    ),
    again: bool = typer.Option(False, "--again", help="Also what is judged already."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan with the exact commands, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Judge a model: MMLU-Pro asked of its server, or perplexity of its files. Goes on where it was after a break.

    By default a part of the questions, the same for every model, with the interval that leaves. `fleet results quality`
    lists the scores.
    """
    from fleet_controller.cli.eval_command import EvalOptions, run_eval

    options = EvalOptions(
        models=tuple(models or ()),
        pattern=hosts,
        protocol=protocol,
        perplexity=perplexity,
        quantization=quantization,
        subjects=tuple(word.strip() for text in subjects or () for word in text.split(",") if word.strip()),
        questions=questions,
        all=everything,
        workers=workers,
        max_tokens=max_tokens,
        seed=seed,
        dataset=dataset,
        deploy=deploy,
        backend=backend,
        repository=repository,
        backend_version=backend_version,
        engine_path=engine_path,
        offline_folder=offline,
        corpus=corpus,
        chunks=chunks,
        context=context,
        pause_services=pause_services,
        again=again,
        base=base,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    run_eval(options)
