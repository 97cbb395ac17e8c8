"""python lm_eval_run.py FOLDER BASE_URL, in lm_eval's own environment: its MMLU-Pro tasks over the rows given.

lm_eval builds the prompts, takes the letters out and scores; the requests are ours, so that each answer is kept at
once, one that the token limit cut off is known as such, and no kill makes a question asked twice. They are those of its
local-chat-completions model: the chat as it is, temperature 0, its stop words, seed 1234 (openai_completions.py).
Written for lm_eval 0.4.13.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from fleet_agent.evaluating.asking import AskingFailed, Request, ask_all
from fleet_agent.evaluating.journal import Journal
from fleet_agent.evaluating.task import Reporter, Task, give_up

FILTER, METRIC = "custom-extract", "exact_match"
SPLITS = ("test", "validation")


def model_class(base: Any) -> Any:
    """A model of lm_eval that asks our way. `base` is lm_eval.api.model.LM."""

    class ServedModel(base):  # type: ignore[misc]
        def __init__(self, task: Task, journal: Journal, reporter: Reporter) -> None:
            super().__init__()
            self._task, self._journal, self._reporter = task, journal, reporter

        @property
        def tokenizer_name(self) -> str:
            return ""

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            """The chat as JSON: the server has the template."""
            return json.dumps(chat_history, ensure_ascii=False)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [Request(str(one.doc["question_id"]), json.loads(one.args[0])) for one in requests]
            arguments = requests[0].args[1]
            until = arguments.get("until") or []
            stop = tuple([until] if isinstance(until, str) else until)
            sampling = replace(self._task.sampling, max_tokens=arguments["max_gen_toks"], stop=stop[:4])
            ask_all(asked, self._task.server, sampling, self._task.workers, self._journal, self._reporter.heard)
            known = self._journal.known
            return [
                known[one.question, one.prompt].text if (one.question, one.prompt) in known else "" for one in asked
            ]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError("a chat endpoint tells no likelihoods")

        loglikelihood_rolling = loglikelihood

    return ServedModel


def write_tasks(folder: Path, stock: Path, document: Any) -> list[str]:
    """The harness's own task of each subject, over our rows. Returns the tasks' names."""
    for split in SPLITS:
        lines = [json.dumps(row, ensure_ascii=False) for row in document[split]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = []
    for category in dict.fromkeys(str(row["category"]) for row in document["test"]):
        slug = category.replace(" ", "_")
        if not (stock / f"mmlu_pro_{slug}.yaml").is_file():
            message = f"lm_eval has no MMLU-Pro task of the subject {category!r}"
            raise AskingFailed("no-such-subject", message, "--protocol tiger takes any subject")
        name = f"fleet_mmlu_pro_{slug}"
        task = {
            "include": str(stock / f"mmlu_pro_{slug}.yaml"),
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(folder / f"{split}.jsonl") for split in SPLITS}},
            "generation_kwargs": {
                "until": ["Question:"],
                "max_gen_toks": document["sampling"]["max_tokens"],
                "do_sample": False,
                "temperature": 0.0,
            },
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML, too
        names.append(name)
    return names


def evaluate(task: Task, reporter: Reporter, journal: Journal) -> dict[str, Any]:
    """{"harness": each task's own score, "right": ids of the questions that the harness counts as right}."""
    harness = importlib.import_module("lm_eval")
    stock = Path(str(harness.__file__)).parent / "tasks" / "mmlu_pro"
    names = write_tasks(task.folder, stock, task.document)
    model = model_class(importlib.import_module("lm_eval.api.model").LM)(task, journal, reporter)
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(task.folder))
    found = harness.simple_evaluate(
        model=model, tasks=names, task_manager=manager, apply_chat_template=True, fewshot_as_multiturn=True,
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = [sample for name in names for sample in found["samples"][name]]
    return {
        "harness": {name: found["results"][name].get(f"{METRIC},{FILTER}") for name in names},
        "right": [str(one["doc"]["question_id"]) for one in samples if one[METRIC] == 1],
        "asked": len(samples),
    }


def main(folder: Path, base_url: str) -> int:
    # The rows are here; nothing is to be looked up anywhere.
    os.environ.update(
        {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    )
    task = Task.read(folder, base_url)
    reporter, journal = Reporter(task), Journal(folder)
    try:
        found = evaluate(task, reporter, journal)
    except AskingFailed as error:
        return give_up(error)
    finally:
        journal.close()
    reporter.write(**found)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
