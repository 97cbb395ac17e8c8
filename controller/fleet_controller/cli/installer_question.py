"""Asking about a maker's install script: by name, with its address and hash; `--yes` alone never answers it."""

from collections.abc import Iterable
from typing import Any, Protocol

INSTALL_LM_STUDIO = "--install-lm-studio"
INSTALL_LM_STUDIO_HELP = "Where LM Studio is missing, run its maker's install script (the plan shows which)."
MISSING = "lm-studio-missing"


class HasProblem(Protocol):
    @property
    def problem(self) -> Any: ...


def may_ask_for_script(hosts: Iterable[HasProblem], *, agreed: bool, dry_run: bool) -> bool:
    """Whether a plan stops for want of a script that the person at this terminal can be asked about."""
    from fleet_controller.cli.output import can_ask  # not for `--help`

    return not agreed and not dry_run and can_ask() and any(host.problem.code == MISSING for host in hosts)
