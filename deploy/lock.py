#!/usr/bin/env python3
"""Writes the pins of record: `make lock`. With --check it changes nothing and fails where they are not current.

1. The exact `constraint-dependencies` of the root pyproject.toml: uv.lock names an index's host and stays uncommitted.
2. deploy/agent-requirements.txt: the agent's third-party packages with hashes and without addresses, for every
   Python and platform that an agent runs on. Bring-up ships it to hosts.

`make lock` resolves to the newest versions; `--keep` keeps the present pins and fills in what is missing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOT_PROJECT = ROOT / "pyproject.toml"
AGENT_REQUIREMENTS = ROOT / "deploy" / "agent-requirements.txt"
OWN_PREFIX = "llmfleet"
OLDEST_AGENT_PYTHON = "3.10"
WORKSPACE_PYTHON = "python_full_version >= '3.11'"
_CONSTRAINTS = re.compile(r"^constraint-dependencies = \[(?:\]|\n.*?^\])$", re.DOTALL | re.MULTILINE)


def uv(*arguments: str, cwd: Path = ROOT) -> str:
    """What uv printed. Exits with uv's own words where it fails."""
    done = subprocess.run(["uv", *arguments], cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"uv {' '.join(arguments[:2])} failed:\n{done.stderr.strip()}")
    return done.stdout


def copy_projects(folder: Path, constraints: list[str]) -> None:
    """The workspace's pyproject files alone: resolving needs no more, and the tree stays as it is."""
    for path in [ROOT_PROJECT, *ROOT.glob("*/pyproject.toml")]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    root = folder / "pyproject.toml"
    root.write_text(with_constraints(root.read_text(encoding="utf-8"), constraints), encoding="utf-8")


def with_constraints(project: str, constraints: list[str]) -> str:
    """The text of the root pyproject.toml with these pins."""
    lines = "".join(f'    "{pin}",\n' for pin in constraints)
    text = f"constraint-dependencies = [\n{lines}]" if constraints else "constraint-dependencies = []"
    changed, count = _CONSTRAINTS.subn(lambda _: text, project, count=1)
    if count != 1:
        sys.exit("pyproject.toml has no constraint-dependencies to write to")
    return changed


def resolve_workspace(constraints: list[str]) -> list[str]:
    """`name==version` for every third-party package of the workspace, resolved under these constraints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_projects(folder, constraints)
        uv("lock", "--quiet", cwd=folder)
        packages = tomllib.loads((folder / "uv.lock").read_text(encoding="utf-8"))["package"]
    return pins(packages)


def pins(packages: list[dict[str, Any]]) -> list[str]:
    """Exact pins of a lock's packages; where a package has several versions, each with the markers that choose it."""
    found = []
    for package in packages:
        if package["name"].startswith(OWN_PREFIX):
            continue
        pin = f"{package['name']}=={package['version']}"
        markers = package.get("resolution-markers")
        found.append(f"{pin} ; {' or '.join(f'({marker})' for marker in markers)}" if markers else pin)
    return sorted(found)


def agent_dependencies() -> list[str]:
    """The third-party dependencies of the agent and of proto, as their pyproject files give them."""
    names: set[str] = set()
    for member in ("agent", "proto"):
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        names |= {name for name in project["dependencies"] if not name.startswith(OWN_PREFIX)}
    return sorted(names)


def for_newer_python(pin: str) -> str:
    """A pin that leaves the agent's oldest Python free: the workspace's newest versions may not run there."""
    name, _, marker = pin.partition(" ; ")
    return f"{name} ; {WORKSPACE_PYTHON}" + (f" and ({marker})" if marker else "")


def resolve_agent(constraints: list[str]) -> str:
    """The text of agent-requirements.txt under these constraints.

    It is resolved outside the workspace, whose pins would hold for the agent's oldest Python, too.
    """
    with tempfile.TemporaryDirectory() as name:
        wanted, limits = Path(name, "wanted.in"), Path(name, "limits.txt")
        wanted.write_text("\n".join(agent_dependencies()), encoding="utf-8")
        limits.write_text("\n".join(map(for_newer_python, constraints)), encoding="utf-8")
        text = uv(
            "pip", "compile", str(wanted), "--constraints", str(limits), "--universal",
            "--python-version", OLDEST_AGENT_PYTHON, "--generate-hashes", "--no-header", "--no-annotate",
            "--no-emit-index-url", "--no-emit-find-links", "--quiet",
            cwd=Path(name),  # away from the root pyproject.toml, whose pins bind the workspace's Python only
        )  # fmt: skip
    header = "# The agent's third-party packages, written by deploy/lock.py (make lock). Bring-up ships it to hosts.\n"
    return header + text


def present_pins() -> list[str]:
    settings = tomllib.loads(ROOT_PROJECT.read_text(encoding="utf-8"))["tool"]["uv"]
    return list(settings["constraint-dependencies"])


def check() -> int:
    """0 where resolving again under the present pins changes neither of the two files."""
    present = present_pins()
    stale = []
    if not present or resolve_workspace(present) != present:
        stale.append("pyproject.toml (constraint-dependencies)")
    if not AGENT_REQUIREMENTS.exists() or AGENT_REQUIREMENTS.read_text(encoding="utf-8") != resolve_agent(present):
        stale.append("deploy/agent-requirements.txt")
    for name in stale:
        print(f"{name} is not current; run: make lock", file=sys.stderr)
    return 1 if stale else 0


def write(keep: bool) -> int:
    constraints = resolve_workspace(present_pins() if keep else [])
    ROOT_PROJECT.write_text(with_constraints(ROOT_PROJECT.read_text(encoding="utf-8"), constraints), encoding="utf-8")
    AGENT_REQUIREMENTS.write_text(resolve_agent(constraints), encoding="utf-8")
    print(f"{len(constraints)} pins in pyproject.toml; deploy/agent-requirements.txt written")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the pins are not current")
    parser.add_argument("--keep", action="store_true", help="keep the present pins, fill in what is missing")
    arguments = parser.parse_args()
    return check() if arguments.check else write(arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
