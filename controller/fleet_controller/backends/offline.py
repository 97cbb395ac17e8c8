"""A Python environment from a folder of wheels on the host: no package index, no repository."""

import re

from fleet_controller.backends.base import BackendError
from fleet_controller.domain.steps import PythonEnvironmentStep

_FROM_GIT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*@\s*git\+\S+")


def offline_environment(step: PythonEnvironmentStep, folder: str) -> tuple[PythonEnvironmentStep, tuple[str, ...]]:
    """The step with everything taken from `folder`, and what a user should know about it.

    A package that otherwise comes from a git repository is taken as the folder has it: the wheel does not tell which
    commit it was built from. Pre-releases are taken too, since a folder holds what somebody put there.
    Raises BackendError for a folder that is no absolute path.
    """
    if not folder.startswith("/"):
        raise BackendError(
            "bad-folder", f"{folder!r} is no absolute folder on the hosts", "give one as in --offline /data/wheels"
        )
    names = dict.fromkeys(
        found[1]
        for requirement in (*step.requirements, *step.overrides)
        if (found := _FROM_GIT.fullmatch(requirement.split("#")[0])) is not None
    )
    warnings = tuple(f"{name} is taken as {folder} has it: otherwise a commit of its repository is" for name in names)
    update = {
        "requirements": tuple(map(_by_name, step.requirements)),
        "overrides": tuple(map(_by_name, step.overrides)),
        "find_links": (folder,),
        "no_index": True,
        "extra_index_urls": (),
        "torch_backend": "",
        "prerelease": True,
    }
    return step.model_copy(update=update), warnings


def _by_name(requirement: str) -> str:
    found = _FROM_GIT.fullmatch(requirement.split("#")[0])
    return found[1] if found else requirement
