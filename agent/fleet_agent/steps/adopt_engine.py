"""Ready binaries become an install of ours: those of a folder on the host by links, nothing copied or changed; those of
an unpacked archive as copies, with the libraries beside them.

The version is what the program itself says, and so are its options, which are kept as "flags".
Result: {"changed": bool, "path": ..., "install": install.json}.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import AdoptEngineStep
from fleet_agent.steps.capabilities import read_flags
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.install import Install, check_key, locked
from fleet_agent.steps.programs import copy_programs, find_programs, make_startable

VERSION_SECONDS = 60.0
VERSION = re.compile(r"version:?\s+v?([0-9][0-9A-Za-z.+-]*)", re.IGNORECASE)
# llama.cpp: "version: 11434 (d1f2a3b)", newer ones "version: 0.6.0-dev (build 11434, commit d1f2a3b)".
_BUILD = re.compile(r"^version: (?:(\d+) \((\S+)\)|\S+ \(build (\d+), commit (\S+)\))", re.MULTILINE)
_DIGEST_DIGITS = 8
_BLOCK_BYTES = 1 << 20


def check(step: AdoptEngineStep) -> None:
    check_key(step.install_key, "install key")
    if bool(step.path) == bool(step.source_key):
        raise SpecProblem("binaries to adopt have exactly one of path and source_key")
    if step.source_key:
        check_key(step.source_key, "source key")
    elif not step.path.startswith("/"):
        raise SpecProblem(f"{step.path!r} is no absolute folder on the host")
    if not step.binaries:
        raise SpecProblem("no binary named to adopt")
    for name in step.binaries:
        if name in ("", ".", "..") or "/" in name or name.startswith("-"):
            raise SpecProblem(f"{name!r} is no plain file name")


async def run(step: AdoptEngineStep, context: StepContext) -> dict[str, Any]:
    install = Install.at(step.install_key, step.backend, step.version, context.layout.engines_dir)
    async with locked(context, step.install_key):
        if install.present and _is_whole(step, install):
            return install.result(changed=False)
        install.clean()
        try:
            if step.source_key:
                await _adopt_archive(step, install, context)
            else:
                await _adopt_folder(step, install, context)
        finally:
            install.clean()
        return install.result(changed=True)


async def _adopt_folder(step: AdoptEngineStep, install: Install, context: StepContext) -> None:
    folder = Path(step.path)
    for name in step.binaries:
        if not (folder / name).is_file() or not os.access(folder / name, os.X_OK):
            message = f"there is no program {name} in {folder}"
            raise JobProblem("engine-missing", message, "name the folder that holds the built binaries")
    version = await _ask_version(folder, step.binaries, context)
    _link(step, install, folder)
    await _finish(step, install, context, folder, version, adopted_path=str(folder))


async def _adopt_archive(step: AdoptEngineStep, install: Install, context: StepContext) -> None:
    unpacked = context.layout.sources_dir / step.source_key
    folder = await context.in_thread(find_programs, unpacked, step.binaries)
    if folder is None:
        names = " and ".join(step.binaries)
        remedy = "an archive of source is built instead where its name has no '-bin' in it"
        raise JobProblem("engine-missing", f"the archive holds no folder with the programs {names}", remedy)
    await context.in_thread(copy_programs, folder, step.binaries, install.staging)
    launchers = await make_startable(install.staging, step.binaries, context)
    binaries = install.staging / "bin"
    version = await _ask_version(binaries, step.binaries, context)
    await _finish(step, install, context, binaries, version, source_key=step.source_key, launchers=launchers)


async def _finish(
    step: AdoptEngineStep, install: Install, context: StepContext, folder: Path, version: str, **more: Any
) -> None:
    flags = await read_flags(folder, step.binaries, context)
    final = Install.at(install.key, install.backend, step.version or version, context.layout.engines_dir)
    binaries = [f"bin/{name}" for name in step.binaries]
    final.finish({"adopted": True}, binaries, reported_version=version, flags=list(flags), **more)


def _is_whole(step: AdoptEngineStep, install: Install) -> bool:
    if step.source_key:
        return all(os.access(install.final / "bin" / name, os.X_OK) for name in step.binaries)
    return _same_links(step, install)


def _same_links(step: AdoptEngineStep, install: Install) -> bool:
    return all(
        (install.final / "bin" / name).resolve() == (Path(step.path) / name).resolve()
        and os.access(install.final / "bin" / name, os.X_OK)
        for name in step.binaries
    )


def _link(step: AdoptEngineStep, install: Install, folder: Path) -> None:
    (install.staging / "bin").mkdir(parents=True)
    for name in step.binaries:
        (install.staging / "bin" / name).symlink_to(folder / name)


async def _ask_version(folder: Path, binaries: tuple[str, ...], context: StepContext) -> str:
    """What `--version` of the server (else of the first binary) says. Raises JobProblem where it does not run."""
    name = "llama-server" if "llama-server" in binaries else binaries[0]
    said: list[str] = []

    def on_line(stream: str, text: str) -> bool:
        said.append(text)
        return False

    result = await context.run_child([folder / name, "--version"], deadline_seconds=VERSION_SECONDS, on_line=on_line)
    if result.exit_code != 0:
        remedy = "it may be built for another machine or miss a library: start it by hand on the host"
        raise context.child_failed(f"{name} --version", result, folder, "engine-broken", remedy)
    return await context.in_thread(version_of, "\n".join(said), folder / name)


def version_of(said: str, program: Path) -> str:
    """ "b11434"; of a build without a number its commit ("0.6.0-dev-g1a2b3c4"), and of one that knows neither, since it
    was built outside of a checkout, its own digest ("0.6.0-dev-sha-1a2b3c4d"), so that two of them are told apart."""
    found = VERSION.search(said)
    build = _BUILD.search(said)
    if build is None:
        return found[1] if found else ""
    number, commit = build[1] or build[3], build[2] or build[4]
    if number != "0":
        return f"b{number}"
    release = "" if found is None or found[1] == "0" else f"{found[1]}-"
    if commit != "unknown":
        return f"{release}g{commit}"
    digest = hashlib.sha256()
    with program.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return f"{release}sha-{digest.hexdigest()[:_DIGEST_DIGITS]}"
