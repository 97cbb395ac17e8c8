"""Programs that were built elsewhere, copied out of an unpacked archive with the libraries that they load.

Libraries lie beside a program or in ../lib; a program finds them by its own run path ($ORIGIN, @loader_path). One that
was built without gets a launcher: a script under its name that sets the library path and becomes the program.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.steps.context import ChildResult, StepContext

# What a program loads at run time when it was not linked statically.
COMPANIONS = ("*.so", "*.so.*", "*.dylib", "*.metallib", "*.metal")
LIBRARY_FOLDERS = ("lib", "lib64")
START_SECONDS = 60.0
# Where the programs themselves go when launchers take their names: a program still finds ../lib and $ORIGIN there.
REAL = "programs"
LIBRARY_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
LAUNCHER = """#!/bin/sh
# {name} was built without a run path: its libraries are named to the loader.
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd) || exit 126
{variable}="$here/{real}:$here/lib:$here/lib64${{{variable}:+:${variable}}}"
export {variable}
exec "$here/{real}/{name}" "$@"
"""


def find_programs(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder below `folder`, nearest to its top, that has all these programs; None where none has."""
    found = sorted(folder.rglob(names[0]), key=lambda path: (len(path.parts), str(path)))
    return next((path.parent for path in found if all(_is_program(path.parent / name) for name in names)), None)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def copy_companions(source: Path, target: Path) -> None:
    """The libraries of one folder, links as links."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if not os.path.lexists(target / path.name):
                shutil.copy2(path, target / path.name, follow_symlinks=False)


def copy_programs(source: Path, names: Iterable[str], install: Path) -> None:
    """The programs to <install>/bin, with the libraries beside them and those of ../lib."""
    binaries = install / "bin"
    binaries.mkdir(parents=True)
    for name in names:
        shutil.copy2(source / name, binaries / name)
    copy_companions(source, binaries)
    for folder in LIBRARY_FOLDERS:
        if source.name == "bin" and (source.parent / folder).is_dir():
            copy_companions(source.parent / folder, install / folder)


async def make_startable(install: Path, names: tuple[str, ...], context: StepContext) -> bool:
    """Whether the programs needed launchers to find their libraries. Raises JobProblem where they do not start."""
    result = await _start(install, names[0], context)
    if result.exit_code == 0:
        return False
    if result.says("shared librar", "Library not loaded"):
        await context.in_thread(_put_launchers, install, names)
        result = await _start(install, names[0], context)
        if result.exit_code == 0:
            return True
    remedy = "it may be built for another machine, or miss a library that this host has to have"
    raise context.child_failed(f"{names[0]} --version", result, install, "engine-broken", remedy)


async def _start(install: Path, name: str, context: StepContext) -> ChildResult:
    try:
        return await context.run_child([install / "bin" / name, "--version"], deadline_seconds=START_SECONDS)
    except OSError as error:  # another machine's format
        message = f"{name} cannot be started here: {error.strerror}"
        raise JobProblem("engine-broken", message, "take an archive for this machine's system and processor") from None


def _put_launchers(install: Path, names: Iterable[str]) -> None:
    (install / "bin").rename(install / REAL)
    (install / "bin").mkdir()
    for name in names:
        launcher = install / "bin" / name
        launcher.write_text(LAUNCHER.format(name=name, real=REAL, variable=LIBRARY_PATH), encoding="utf-8")
        launcher.chmod(0o755)
