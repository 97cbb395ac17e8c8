"""What a build of llama-server can do: the options that its own `--help` lists, read once when it is installed."""

import re
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.steps.context import StepContext

SERVER = "llama-server"
HELP_SECONDS = 60.0
# A line that begins an option, as "-c,    --ctx-size N     size of the prompt context": its names, one after the other.
NAME = re.compile(r"(-{1,2}[A-Za-z][A-Za-z0-9_-]*)(,\s*)?")
# Such options are listed so that the server can refuse them by name.
REMOVED = "the argument has been removed"


def option_names(help_text: str) -> tuple[str, ...]:
    """Every name of every option, in the order of the text: "-c", "--ctx-size", ..."""
    names: dict[str, None] = {}
    for block in _blocks(help_text):
        if REMOVED not in " ".join(block.split()):
            names.update(dict.fromkeys(_names(block)))
    return tuple(names)


def _blocks(text: str) -> list[str]:
    """One option each: the line that names it and the indented lines below."""
    blocks: list[str] = []
    for line in text.splitlines():
        if NAME.match(line):
            blocks.append(line)
        elif blocks and line[:1].isspace():
            blocks[-1] += "\n" + line
    return blocks


def _names(block: str) -> list[str]:
    found, position = [], 0
    while matched := NAME.match(block, position):
        found.append(matched[1])
        position = matched.end()
        if matched[2] is None:
            break
    return found


async def read_flags(folder: Path, binaries: tuple[str, ...], context: StepContext) -> tuple[str, ...]:
    """The options of the llama-server in `folder`; () where it does not tell them, which breaks no install."""
    if SERVER not in binaries:
        return ()
    try:
        result = await context.run_child([folder / SERVER, "--help"], deadline_seconds=HELP_SECONDS, capture=True)
    except JobProblem as problem:
        context.log(f"the options of {SERVER} stay unknown: {problem.message}")
        return ()
    names = option_names(result.stdout) if result.exit_code == 0 else ()
    if "--model" not in names:
        context.log(f"the options of {SERVER} stay unknown: its --help lists none")
        return ()
    return names
