"""backends list | install | upgrade | remove | gc: the engines that models run on."""

import typer

from fleet_controller.cli.installer_question import INSTALL_LM_STUDIO, INSTALL_LM_STUDIO_HELP

app = typer.Typer(
    help="The engines on the hosts: versions lie side by side, and what a model needs is never taken away.",
    no_args_is_help=True,
)
HOSTS_HELP = "Hosts: names, globs (gpu*), @groups, !exclusions, commas."
HOSTS = typer.Option(..., "--hosts", "-H", metavar="PATTERN", help=HOSTS_HELP)
BACKEND = typer.Argument(..., metavar="BACKEND", help="llama.cpp, mlx-lm, vllm, sglang or lm-studio.")
VERSION = typer.Option("", "--version", metavar="VERSION", help="Another version than the pinned one.")
OFFLINE = typer.Option(
    "", "--offline", metavar="FOLDER", help="Folder on the hosts with wheels, sources or archives: nothing is fetched."
)
ENGINE_PATH = typer.Option("", "--engine-path", metavar="FOLDER", help="Folder on the hosts with binaries to adopt.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show the plan with the exact commands, and stop.")
YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
JSON = typer.Option(False, "--json", help="One JSON document on stdout.")


@app.command("list")
def list_command(
    pattern: str = typer.Argument("all", metavar="[HOSTS]", help=HOSTS_HELP),
    backend: str = typer.Option("", "--backend", "-b", help="Of this backend only."),
    as_json: bool = JSON,
) -> None:
    """Engines by host: version, disk, age, who uses them, whether they have served; also those that others put there.

    Disk is what the file system allocated, hard links counted once. Python environments may share files with uv's
    cache: removing one frees less then, and the table says how much is shared.
    """
    from fleet_controller.cli.backends_command import run_list

    run_list(pattern, backend, as_json=as_json)


@app.command()
def install(
    backend: str = BACKEND,
    hosts: str = HOSTS,
    version: str = VERSION,
    offline: str = OFFLINE,
    engine_path: str = ENGINE_PATH,
    install_lm_studio: bool = typer.Option(False, INSTALL_LM_STUDIO, help=INSTALL_LM_STUDIO_HELP),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Install a backend, as a deploy would; other versions and what runs on them stay as they are."""
    from fleet_controller.cli.backends_command import ChangeOptions, run_change

    run_change(
        ChangeOptions("install", hosts, dry_run, yes, as_json),
        backend=backend, version=version, offline_folder=offline, engine_path=engine_path,
        run_installer=install_lm_studio,
    )  # fmt: skip


@app.command()
def upgrade(
    backend: str = BACKEND,
    hosts: str = HOSTS,
    version: str = VERSION,
    offline: str = OFFLINE,
    engine_path: str = ENGINE_PATH,
    install_only: bool = typer.Option(False, "--install-only", help="Leave the services where they are."),
    golden_bench: bool = typer.Option(
        False, "--golden-bench", help="Measure one host before and after; the others follow only if it is as good."
    ),
    threshold: str = typer.Option(
        "5%", "--threshold", metavar="PERCENT", help="Most that prefill and decode may fall beyond noise there."
    ),
    canary: str = typer.Option("", "--canary", metavar="HOST", help="That host; else the first that has a model."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Install another version beside, and move the running models to it, one by one.

    Each must get ready and answer a question on the new version, else it goes back to the old one and no other model
    is moved. The old version stays installed; `fleet backends gc` removes it once the new one has served.

    With --golden-bench the canary's models are measured on the old and on the new version (suite golden, or your own
    suites/golden.yaml), and asked one fixed question at temperature 0. Slower beyond noise, or another reply: the
    model goes back, and no other host is changed.
    """
    from fleet_controller.cli.backends_command import ChangeOptions, run_change, share_of

    run_change(
        ChangeOptions("upgrade", hosts, dry_run, yes, as_json),
        backend=backend, version=version, offline_folder=offline, engine_path=engine_path, install_only=install_only,
        golden_bench=golden_bench, golden_threshold=share_of(threshold), canary=canary,
    )  # fmt: skip


@app.command()
def remove(
    backend: str = typer.Argument("", metavar="[BACKEND]", help="With --version: the backend whose version goes."),
    hosts: str = HOSTS,
    version: str = typer.Option("", "--version", metavar="VERSION", help="As `fleet backends list` shows it."),
    key: str = typer.Option("", "--key", metavar="KEY", help="One install, by its key in `fleet backends list`."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Remove installs that no model and no job uses; what others put on a host is never touched."""
    from fleet_controller.cli.backends_command import ChangeOptions, run_change

    options = ChangeOptions("remove", hosts, dry_run, yes, as_json)
    run_change(options, backend=backend, version=version, install_key=key)


@app.command()
def gc(
    hosts: str = HOSTS,
    backend: str = typer.Option("", "--backend", "-b", help="Installs of this backend only; leftovers go anyway."),
    keep: int = typer.Option(1, "--keep", min=1, help="So many installs of each backend that have served stay."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    as_json: bool = JSON,
) -> None:
    """Free disk: old engines that nothing uses, and what failed builds, downloads and sources left.

    An install goes where nothing uses it, it is not the pinned version, and a newer one of the same backend has served.
    Sources go too: the next build of that version fetches them again.
    """
    from fleet_controller.cli.backends_command import ChangeOptions, run_change

    run_change(ChangeOptions("gc", hosts, dry_run, yes, as_json), backend=backend, keep=keep)
