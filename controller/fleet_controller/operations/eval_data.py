"""The data that models are judged by: a folder or file of the user's, or the hub's, fetched once by a host and kept.

What comes from the hub is parquet. A host reads it in the environment of the harness, which has what that takes, so
that nothing of it is needed here.
"""

import hashlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fleet_controller.backends.base import Installation, install_key, installed
from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.evals import EvalRequest
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.steps import JobSpec, PythonEnvironmentStep, RunToolStep, Step, ToolRef
from fleet_controller.evaluating.dataset import HUB_PROGRAM, NAME, Dataset, DatasetError, read_folder, read_printed
from fleet_controller.evaluating.perplexity import CORPUS
from fleet_controller.evaluating.protocols import LM_EVAL_VERSION
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.problems import OperationError
from fleet_inventory.hosts import Host

HARNESS = "lm-eval"
DATASETS_VERSION = "5.2.0"
HARNESS_REQUIREMENTS = (f"lm_eval=={LM_EVAL_VERSION}", f"datasets=={DATASETS_VERSION}")
# 580 MB were measured, and as much again while it is built beside.
HARNESS_DISK_BYTES = 1_200_000_000
REVISION = "main"
FETCH_SECONDS = 3600.0

# Runs in the harness's environment on a host, and prints the text.
CORPUS_PROGRAM = """
import json, sys
from huggingface_hub import hf_hub_download
from pyarrow import parquet
name = "wikitext-2-raw-v1/test-00000-of-00001.parquet"
path = hf_hub_download("Salesforce/wikitext", name, revision=sys.argv[1], repo_type="dataset")
print(json.dumps({"text": "".join(parquet.read_table(path)["text"].to_pylist())}))
"""


class Corpus(Frozen):
    """A text, and its name for people."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def harness(facts: HostFacts, offline_folder: str) -> Installation:
    """lm_eval's own environment on a host, with the step that makes it where it is not there yet."""
    key = install_key(HARNESS, LM_EVAL_VERSION, {"os": facts.system.os, "machine": facts.system.architecture})
    ready = Installation(backend=HARNESS, version=LM_EVAL_VERSION, install_key=key)
    if installed(facts, key):
        return ready
    step = PythonEnvironmentStep(
        install_key=key,
        backend=HARNESS,
        version=LM_EVAL_VERSION,
        requirements=HARNESS_REQUIREMENTS,
        find_links=(offline_folder,) if offline_folder else (),
        no_index=bool(offline_folder),
    )
    steps = (Step(name=f"install {HARNESS_REQUIREMENTS[0]}", python_environment=step),)
    return ready.model_copy(update={"steps": steps, "disk_bytes": HARNESS_DISK_BYTES})


def kept_dataset(context: FleetContext, request: EvalRequest) -> Dataset | None:
    """The user's folder, else what was fetched earlier; None where it is still to be fetched. Raises OperationError."""
    try:
        if request.dataset:
            return read_folder(Path(request.dataset))
    except DatasetError as error:
        raise OperationError(error.code, error.message, error.remedy, usage=True) from None
    path = _kept(context, "mmlu_pro.json")
    return Dataset.model_validate_json(path.read_bytes()) if path.is_file() else None


def kept_corpus(context: FleetContext, request: EvalRequest) -> Corpus | None:
    """As `kept_dataset`, for perplexity."""
    if request.corpus:
        path = Path(request.corpus)
        try:
            return Corpus(name=path.name, text=path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            remedy = "--corpus FILE takes a text in UTF-8"
            raise OperationError("corpus", f"{path} cannot be read: {error}", remedy, usage=True) from None
    path = _kept(context, "wikitext-2.txt")
    return Corpus(name=CORPUS, text=path.read_text(encoding="utf-8")) if path.is_file() else None


def fetch_job(facts: HostFacts, host: Host, request: EvalRequest) -> JobSpec:
    """Reads the data set or the corpus from the hub, on a host."""
    installation = harness(facts, request.offline_folder)
    arguments = ("-c", CORPUS_PROGRAM, REVISION) if request.perplexity else ("-c", HUB_PROGRAM, NAME, REVISION)
    run = RunToolStep(
        tool=ToolRef(install_key=installation.install_key, name="venv/bin/python3"),
        arguments=arguments,
        capture_output=True,
        stall_seconds=FETCH_SECONDS,
    )
    what = CORPUS if request.perplexity else NAME
    return JobSpec(
        job_id=f"eval-data-{hashlib.sha256(f'{what}{installation.install_key}'.encode()).hexdigest()[:16]}",
        title=f"fetch {what}",
        steps=(*installation.steps, Step(name=f"fetch {what}", run_tool=run)),
        disk_needed_bytes=installation.disk_bytes,
        environment=environment_of(host),
    )


async def fetch(context: FleetContext, facts: HostFacts, host: Host, request: EvalRequest) -> AsyncGenerator[HostEvent]:
    """Fetches what `kept_dataset` or `kept_corpus` lacks, and keeps it. Raises OperationError."""
    answers: list[dict[str, Any]] = []
    async for event in run_job(context, host, fetch_job(facts, host, request), answers):
        yield event
    printed = next((str(answer["stdout"]) for answer in reversed(answers) if "stdout" in answer), "")
    try:
        if request.perplexity:
            text = json.loads(printed.strip().splitlines()[-1])["text"]
            _write(_kept(context, "wikitext-2.txt"), text)
        else:
            _write(_kept(context, "mmlu_pro.json"), read_printed(NAME, printed).model_dump_json())
    except (DatasetError, ValueError, LookupError) as error:
        raise OperationError(
            "dataset", f"what the hub gave is no {NAME}: {error}", "--dataset FOLDER takes another"
        ) from None


def environment_of(host: Host) -> tuple[EnvironmentVariable, ...]:
    return tuple(EnvironmentVariable(name=name, value=value) for name, value in sorted(host.environment.items()))


def _kept(context: FleetContext, name: str) -> Path:
    return context.settings.state_dir / "datasets" / name


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
