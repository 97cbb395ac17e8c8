"""The step of an agent that asks questions of a model."""

from fleet_controller.domain.evals import EvalRequest
from fleet_controller.domain.steps import EvaluateFile, EvaluateStep, SecretVariable, Step, ToolRef
from fleet_controller.evaluating.asking import Asking
from fleet_controller.evaluating.dataset import Dataset
from fleet_controller.evaluating.protocols import LM_EVAL, Protocol, task_document
from fleet_controller.operations.eval_files import packed
from fleet_controller.operations.eval_model import Judged

TASK_FILE = "task.json"
# What harnesses call it; both programs read it.
KEY_VARIABLE = "OPENAI_API_KEY"


def evaluate_step(
    judged: Judged,
    protocol: Protocol,
    asking: Asking,
    dataset: Dataset,
    key: str,
    harness_key: str,
    request: EvalRequest,
) -> Step:
    """`harness_key` is the install of lm_eval; the other protocol needs no install."""
    document = task_document(
        protocol, dataset, asking.questions, judged.served_model_name, asking.workers, asking.max_tokens
    )
    tool = ToolRef(install_key=harness_key, name="venv/bin/python3") if protocol is LM_EVAL else ToolRef()
    secrets = (SecretVariable(name=KEY_VARIABLE, secret=judged.secret),) if judged.secret else ()
    evaluate = EvaluateStep(
        state_key=key,
        program=protocol.program,
        tool=tool,
        arguments=("{folder}", judged.base_url),
        files=(EvaluateFile(name=TASK_FILE, content_gzip=packed(document)),),
        secret_environment=secrets,
        server=judged.server,
        takes_devices=judged.server is not None,
        gpu_indices=judged.gpu_indices if judged.server is not None else (),
        pause_services=request.pause_services,
        artifact_paths=(judged.path,) if judged.path.startswith("/") else (),
    )
    return Step(name=f"ask {len(asking.questions)} questions", evaluate=evaluate)
