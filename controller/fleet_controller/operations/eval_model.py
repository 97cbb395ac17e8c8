"""What a plan of evaluations keeps of each: the model judged, the server asked, and what must be done before."""

from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.evals import EvalCell, EvalRequest
from fleet_controller.domain.steps import BenchServer, Step, ToolRef


class Judged(Frozen):
    """One artifact on one backend. `identity` is all that changes answers and is known before; `path` is on the host.

    `base_url` is that of a service that runs, "{base_url}" of a server that the step starts. `context_tokens` are
    those of a request where the server has `slots`, else shared by all requests.
    """

    model: str
    repository: str = ""
    quantization: str = ""
    backend: str
    backend_version: str = ""
    install_key: str = ""
    identity: str
    path: str = ""
    gpu_indices: tuple[int, ...] = ()
    served_model_name: str = ""
    base_url: str = ""
    secret: str = ""
    server: BenchServer | None = None
    context_tokens: int = 0
    slots: int = 0


class PlannedEval(Frozen):
    """A cell as shown, with what is needed to run it. Of perplexity, `tool` measures and `base` is compared with.

    `base` is None where this cell is the base itself, or there is none.
    """

    shown: EvalCell
    judged: Judged | None = None
    steps: tuple[Step, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    disk_needed_bytes: int = 0
    tool: ToolRef = ToolRef()
    base: Judged | None = None
    base_steps: tuple[Step, ...] = ()


class StoredEvalPlan(Frozen):
    plan_id: str
    request: EvalRequest
    cells: tuple[PlannedEval, ...]
    notes: tuple[str, ...] = ()
