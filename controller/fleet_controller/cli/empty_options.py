"""Options that were given an empty value: mostly a variable of the shell that was never set."""

import typer

from fleet_controller.cli.failures import UsageFailure


def refuse_empty(context: typer.Context) -> None:
    """An empty value would read as "not given": `--api-key "$REFERENCE"` would serve without a key.

    Raises UsageFailure for the first option of the running command that is empty.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.param_type_name == "option" and context.params.get(name) == "":
            raise UsageFailure(
                f"{parameter.opts[0]} was given an empty value",
                "leave the option out, or look at the variable that it was filled from",
            )
