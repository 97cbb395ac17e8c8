"""deploy, ps, logs, stop: models on hosts."""

import typer

from fleet_controller.cli.installer_question import INSTALL_LM_STUDIO, INSTALL_LM_STUDIO_HELP

LARGEST_NUMBER = 2**31 - 1  # what fits the messages to the controller
HOSTS_HELP = "Hosts: names, globs (gpu*), @groups, !exclusions, commas."


def register(app: typer.Typer) -> None:
    """Add this file's commands to the application."""
    app.command()(deploy)
    app.command()(ps)
    app.command()(logs)
    app.command()(stop)


def deploy(
    context_of_command: typer.Context,
    model: str = typer.Argument(
        "", metavar="MODEL", help="A name of `fleet models`, name:quant, or an absolute path on the hosts."
    ),
    hosts: str = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    backend: str = typer.Option(
        "", "--backend", "-b", help="By name (a wrong one lists all); as `fleet choose` says where not given."
    ),
    backend_version: str = typer.Option("", "--backend-version", help="Another version than the pinned one."),
    quantization: str = typer.Option(
        "", "--quant", "-q", help="Q4_K_M, 4bit, ...; as `fleet choose` says where not given."
    ),
    context: int | None = typer.Option(
        None, "--context", "-c", min=1, max=LARGEST_NUMBER, help="Context length in tokens, for each request."
    ),
    port: int | None = typer.Option(None, "--port", "-p", min=1, max=65535, help="Port of the endpoint on the host."),
    max_parallel: int | None = typer.Option(
        None, "--max-parallel", min=1, max=LARGEST_NUMBER, help="Requests served at once."
    ),
    repository: str = typer.Option("", "--repo", "--repository", help="Any repository of the model hub, owner/name."),
    speculative: bool | None = typer.Option(
        None, "--speculative/--no-speculative", help="Speculative decoding; as the catalog has it where not given."
    ),
    engine_path: str = typer.Option("", "--engine-path", help="Folder on the hosts with binaries to use as they are."),
    kv_cache_type: str = typer.Option(
        "",
        "--kv-cache-type",
        metavar="TYPE",
        help="Type of the KV cache, in the backend's words: q8_0, q4_0, ... (llama.cpp), fp8, ... (vllm, sglang).",
    ),
    flash_attention: str = typer.Option(
        "", "--flash-attention", metavar="on|off|auto", help="Flash attention (llama.cpp)."
    ),
    tensor_parallel: int | None = typer.Option(
        None,
        "--tensor-parallel",
        min=1,
        max=LARGEST_NUMBER,
        help="GPUs to deal the model out to (vllm, sglang); all where not given.",
    ),
    memory_fraction: float | None = typer.Option(
        None, "--memory-fraction", min=0.05, max=1.0, help="Part of each GPU that the server takes (vllm, sglang)."
    ),
    dtype: str = typer.Option("", "--dtype", help="Type that is computed with: bfloat16, float16, ... (vllm, sglang)."),
    vision: bool | None = typer.Option(
        None,
        "--vision/--no-vision",
        help="With the model's multimodal projector, or without (llama.cpp); as the catalog has it where not given.",
    ),
    name: str = typer.Option(
        "", "--name", help="Name of the service and of the model it serves; the model's where not given."
    ),
    offline: str = typer.Option(
        "",
        "--offline",
        metavar="FOLDER",
        help="Install the engine from this folder on the hosts (wheels, source or release archives), from no index.",
    ),
    bind: str = typer.Option("", "--bind", help="Address that the endpoint listens on; 127.0.0.1 where not given."),
    api_key: str = typer.Option(
        "",
        "--api-key",
        metavar="REFERENCE",
        help="Key that clients must send: env:NAME or file:/path, never the key itself. Needed with --bind.",
    ),
    install_lm_studio: bool = typer.Option(False, INSTALL_LM_STUDIO, help=INSTALL_LM_STUDIO_HELP),
    canary: str = typer.Option(
        "",
        "--canary",
        metavar="HOST[,HOST]",
        help="Hosts that are changed first and must answer; the first of each backend if not given, `none` for none.",
    ),
    gate: str = typer.Option(
        "health",
        "--gate",
        metavar="health|golden",
        help="golden: a canary must also be as fast as what ran there before, and answer the same.",
    ),
    threshold: float = typer.Option(5.0, "--threshold", help="With --gate golden: percent that it may be slower."),
    wave: str = typer.Option(
        "100%",
        "--wave",
        metavar="N%|LABEL",
        help="How many of the other hosts come at once, or a label of hosts.yaml: a wave for each of its values.",
    ),
    max_unavailable: int = typer.Option(
        0, "--max-unavailable", min=0, max=LARGEST_NUMBER, help="Hosts that are changed at a time; 0 = a whole wave."
    ),
    max_failures: int = typer.Option(
        0, "--max-failures", min=0, max=LARGEST_NUMBER, help="Failed hosts that do not stop the rest."
    ),
    catch_up: bool = typer.Option(
        False,
        "--catch-up",
        help="Hosts that are away are no failures: a resident controller (`fleet controller start`) changes them when "
        "they are back, and `fleet rollout resume` at once.",
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait until no bench has the devices for itself any more."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan with the exact commands, and stop."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Put a model on hosts: install what is missing, fetch the files, start, wait until it answers."""
    from fleet_controller.cli.deploy_command import DeployOptions, run_deploy
    from fleet_controller.cli.empty_options import refuse_empty
    from fleet_controller.cli.rollout_order import RolloutOptions

    refuse_empty(context_of_command)
    options = DeployOptions(
        model=model,
        pattern=hosts,
        backend=backend,
        backend_version=backend_version,
        quantization=quantization,
        context_length=context,
        port=port,
        max_parallel=max_parallel,
        repository=repository,
        engine_path=engine_path,
        speculative=speculative,
        bind_address=bind,
        api_key=api_key,
        kv_cache_type=kv_cache_type,
        flash_attention=flash_attention,
        tensor_parallel=tensor_parallel,
        memory_fraction=memory_fraction,
        dtype=dtype,
        vision=vision,
        service_name=name,
        offline_folder=offline,
        run_installer=install_lm_studio,
        order=RolloutOptions(canary, gate, threshold, wave, max_unavailable, max_failures, catch_up),
        wait=wait,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    run_deploy(options)


def ps(
    pattern: str = typer.Argument("all", metavar="[PATTERN]", help=HOSTS_HELP),
    quick: bool = typer.Option(False, "--quick", help="Without tokens per second and without the servers of others."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show the models that run, where, and how they are."""
    from fleet_controller.cli.ps_command import run_ps

    run_ps(pattern, as_json=as_json, quick=quick)


def logs(
    model: str = typer.Argument(..., metavar="MODEL", help="Name of the service, as `fleet ps` shows it."),
    hosts: str = typer.Option("all", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with new lines until Ctrl-C."),
    tail: int = typer.Option(
        100, "--tail", "-n", min=0, max=LARGEST_NUMBER, help="So many lines of each host; 0 = everything kept."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout; not with --follow."),
) -> None:
    """Show what a model server printed."""
    from fleet_controller.cli.logs_command import run_logs

    run_logs(model, hosts, follow=follow, tail_lines=tail, as_json=as_json)


def stop(
    model: str = typer.Argument("", metavar="[MODEL]", help="Name of the service, as `fleet ps` shows it."),
    hosts: str = typer.Option("all", "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP),
    everything: bool = typer.Option(False, "--all", help="Every model on these hosts."),
    remove: bool = typer.Option(False, "--remove", help="Forget the service as well; files and engines stay."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Stop a model on hosts."""
    from fleet_controller.cli.services_command import StopOptions, run_stop

    run_stop(StopOptions(model, hosts, everything, remove, yes, as_json))
