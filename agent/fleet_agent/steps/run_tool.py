"""A program of an install of ours, or of the host's allowlist, with arguments; no shell.

Result: {"exit_code": 0, "stdout": text with capture_output}. Any other exit code fails the job, unless the
tool says in the step's own words that its work was done before.
"""

import re
from collections.abc import Sequence
from typing import Any

from fleet_agent.configuration import ALLOWED_TOOLS, INSTALL_KEY, check_environment
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import RunToolStep, SecretVariable
from fleet_agent.steps.context import StepContext

# A secret goes into a variable that is for one; that keeps it out of those that say what is loaded and run.
_SECRET_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_(KEY|TOKEN|SECRET)\Z")


def check_secrets(variables: Sequence[SecretVariable]) -> None:
    """Raises SpecProblem for a variable that is not for a secret, or names none."""
    for variable in variables:
        if not _SECRET_VARIABLE.match(variable.name) or not variable.secret:
            raise SpecProblem(
                f"{variable.name!r} is no variable for a secret", "its name ends in _KEY, _TOKEN, _SECRET"
            )


def check(step: RunToolStep) -> None:
    check_secrets(step.secret_environment)
    check_environment({variable.name: variable.value for variable in step.environment})
    key, name = step.tool.install_key, step.tool.name
    if key and (not INSTALL_KEY.match(key) or not name or name.startswith("/") or ".." in name.split("/")):
        raise SpecProblem(f"tool {name!r} of install {key!r} is not a path inside an install")
    if not key and name not in ALLOWED_TOOLS:
        raise SpecProblem(f"{name!r} is no tool of the allowlist", f"allowed are: {', '.join(ALLOWED_TOOLS)}")
    if any("\0" in argument for argument in step.arguments):
        raise SpecProblem("an argument holds a NUL")
    if step.stall_seconds < 0 or step.deadline_seconds < 0:
        raise SpecProblem("a limit is negative")


async def run(step: RunToolStep, context: StepContext) -> dict[str, Any]:
    program = context.tool(step.tool.name, step.tool.install_key)
    result = await context.run_child(
        [program, *step.arguments],
        environment={variable.name: variable.value for variable in step.environment},
        private_environment=context.secrets(step.secret_environment),
        stall_seconds=step.stall_seconds,
        deadline_seconds=step.deadline_seconds,
        capture=step.capture_output,
    )
    done = bool(step.already_done_text) and result.says(step.already_done_text)
    if result.exit_code != 0 and not done:
        raise context.child_failed(step.tool.name, result, context.layout.machine_dir, "tool-failed")
    return {"exit_code": 0, "stdout": result.stdout} if step.capture_output else {"exit_code": 0}
