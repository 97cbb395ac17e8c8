"""Every check that needs no running part: pins, addresses, lint, types, import direction, generated code.

Run as `./dev check`. Prints one line a check; exit 1 when any failed, after all have run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
# Addresses of package indexes have no place in a committed file: each machine has its own.
# Reserved names (RFC 2606), loopback and addresses a test makes up as it runs are nobody's.
INDEX_ADDRESS = re.compile(
    rb"https?://(?!localhost[:/]|127\.0\.0\.1[:/]|[^\s\"'/]*\.(?:example|invalid)\b|\{)"
    rb"[^\s\"']*(?:/simple\b|pypi|pythonhosted|artifactory|devpi|nexus)",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:root|work)/[\w.]")


def tool(*argv: str) -> str | None:
    """Run a tool of this environment; None when it passed, else its output."""
    done = subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout + done.stderr


def import_direction() -> str | None:
    """import-linter's contracts in pyproject.toml."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else done.stdout + done.stderr


def tracked() -> list[Path]:
    """The files git tracks, or would (new and not ignored)."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


def addresses() -> str | None:
    """No committed file names an index's host or a path of the machine it was written on."""
    found = []
    for path in tracked():
        if not path.is_file() or path == Path(__file__):
            continue
        content = path.read_bytes()
        for pattern in (INDEX_ADDRESS, MACHINE_PATH):
            found += [f"{path.relative_to(ROOT)}: {match.group(0).decode()}" for match in pattern.finditer(content)]
    return "\n".join(found) or None


def generated_code() -> str | None:
    """Regenerating the messages and stubs gives what is committed."""
    with tempfile.TemporaryDirectory() as folder:
        protos = sorted(str(p.relative_to(PROTO)) for p in (PROTO / "fleet_proto").rglob("*.proto"))
        services = [p for p in protos if "\nservice " in (PROTO / p).read_text()]
        binary = Path(sys.executable).parent
        plugins = [f"--plugin=protoc-gen-{name}={binary / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
        for outputs, files in (
            ([f"--python_out={folder}", f"--mypy_out=quiet:{folder}"], protos),
            ([f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}"], services),
        ):
            argv = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *plugins, *outputs, *files]
            done = subprocess.run(argv, cwd=PROTO, capture_output=True, text=True, check=False)
            if done.returncode:
                return done.stderr
        fresh = {p.relative_to(folder): p.read_text() for p in Path(folder).rglob("*.py*")}
        committed = {
            p.relative_to(PROTO): p.read_text()
            for p in (PROTO / "fleet_proto").rglob("*_pb2*.py*")
            if "__pycache__" not in p.parts
        }
        stale = sorted(str(name) for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
        return f"stale: {', '.join(stale)}; run `make proto`" if stale else None


def shell_scripts() -> str | None:
    """shellcheck, where it is installed."""
    if shutil.which("shellcheck") is None:
        return None
    scripts = [
        p
        for p in tracked()
        if p.is_file() and p.read_bytes()[:40].startswith((b"#!/bin/sh", b"#!/usr/bin/env bash", b"#!/bin/bash"))
    ]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout


CHECKS: dict[str, Callable[[], str | None]] = {
    "pins current": lambda: tool("deploy.lock", "--check"),
    "no index address or machine path": addresses,
    "lint": lambda: tool("ruff", "check", "."),
    "format": lambda: tool("ruff", "format", "--check", "."),
    "types": lambda: tool("mypy"),
    "import direction": import_direction,
    "generated code current": generated_code,
    "shell scripts": shell_scripts,
}


def main() -> int:
    """Run all checks."""
    failed = 0
    for name, check in CHECKS.items():
        problem = check()
        print(f"{'ok    ' if problem is None else 'FAILED'} {name}", flush=True)
        if problem is not None:
            failed += 1
            print(problem.rstrip(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
