"""The typer application: which commands there are. Their bodies import what they need when they run."""

import typer

from fleet_controller.cli import (
    agent,
    artifacts,
    backends,
    bench,
    calibrate,
    choose,
    controller,
    deploy,
    endpoints,
    eval,
    hosts,
    lab,
    pull,
    results,
    results_group,
    rollout,
)

app = typer.Typer(
    name="fleet",
    help="Put a model on every machine of a lab, with the backend and quantization that suits it, and keep it running.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from fleet_controller.service.protocol import software_version

        typer.echo(f"fleet {software_version()}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_show_version, is_eager=True),
) -> None:
    pass


hosts.register(app)
deploy.register(app)
pull.register(app)
lab.register(app)
choose.register(app)
endpoints.register(app)
bench.register(app)
eval.register(app)
calibrate.register(app)
results.register(app)
results_group.register(app)
app.add_typer(agent.app, name="agent")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(backends.app, name="backends")
app.add_typer(rollout.app, name="rollout")
app.add_typer(controller.app, name="controller")
