"""What of a deploy's options can be told wrong before any host is asked."""

import re

from fleet_controller.backends import backend_for
from fleet_controller.backends.options import OptionRefusedError, check_engine_options
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.operations.problems import OperationError
from fleet_controller.planning.problem import PlanProblem
from fleet_controller.planning.usable import backend_named, engine_options

# As the agent has it: a service's name is a folder, a host name's label in places, and what clients name as the model.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


def demand_options(request: DeployRequest) -> None:
    """Raises OperationError (usage)."""
    if request.service_name and not _NAME.match(request.service_name):
        message = f"--name {request.service_name!r} is no name of a service"
        raise _usage(message, "lower case letters, digits, '.', '_' and '-', 64 at most, no sign first")
    if request.offline_folder and not request.offline_folder.startswith("/"):
        message = f"--offline takes an absolute folder on the hosts, not '{request.offline_folder}'"
        raise _usage(message, "as in --offline /data/engines")
    if request.engine_path and not request.engine_path.startswith("/"):
        message = f"--engine-path takes an absolute folder on the hosts, not '{request.engine_path}'"
        raise _usage(message, "as in --engine-path /opt/llama.cpp/build/bin")
    fraction = request.memory_fraction
    if fraction is not None and not 0 < fraction <= 1:
        raise _usage(f"--memory-fraction {fraction:g} is no part of a GPU", "a number above 0, and 1 at most")
    if request.tensor_parallel is not None and request.tensor_parallel < 1:
        raise _usage(f"--tensor-parallel {request.tensor_parallel} is no number of GPUs", "1 or more")
    if request.backend:
        _demand_taken(request)


def _demand_taken(request: DeployRequest) -> None:
    """Where the backend is named, what it does not take is a wrong command; else another backend may take it."""
    try:
        name = backend_named(request.backend).name
        check_engine_options(name, backend_for(name, request.backend_version), engine_options(request))
    except OptionRefusedError as error:
        raise _usage(error.message, error.remedy) from None
    except PlanProblem as error:
        raise OperationError(error.problem.code, error.problem.message, error.problem.remedy, usage=True) from None


def _usage(message: str, remedy: str) -> OperationError:
    return OperationError("usage", message, remedy, usage=True)
