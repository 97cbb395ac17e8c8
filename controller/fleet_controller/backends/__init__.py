"""The backends, in one explicit table. Adding one: a file, a line here, a test file."""

from fleet_controller.backends.base import Backend, HasVariants
from fleet_controller.backends.llama_cpp import LlamaCpp
from fleet_controller.backends.lm_studio import LmStudio
from fleet_controller.backends.mlx_lm import MlxLm
from fleet_controller.backends.sglang import SGLang
from fleet_controller.backends.vllm import Vllm

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (LlamaCpp(), MlxLm(), Vllm(), SGLang(), LmStudio())
}

__all__ = ["BACKENDS", "Backend", "backend_for"]


def backend_for(name: str, version: str = "") -> Backend:
    """The backend `name` as it is for a version ("" = the pin). Raises KeyError for a name that is not in the table."""
    backend = BACKENDS[name]
    return backend.variant(version) if isinstance(backend, HasVariants) else backend
