"""python ask.py FOLDER BASE_URL: asks each question of task.json as one user message, and takes the letters out.

A question's prompt is the prefix of its category (task.json "prefixes") and its own "text".
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from fleet_agent.evaluating.asking import AskingFailed, Request, ask_all
from fleet_agent.evaluating.journal import Journal
from fleet_agent.evaluating.task import Reporter, Task, give_up


def requests_of(task: Task) -> list[Request]:
    prefixes = task.document["prefixes"]
    return [
        Request(str(one["id"]), [{"role": "user", "content": prefixes[one["category"]] + one["text"]}])
        for one in task.document["questions"]
    ]


def main(folder: Path, base_url: str) -> int:
    task = Task.read(folder, base_url)
    reporter, journal = Reporter(task), Journal(folder)
    try:
        ask_all(requests_of(task), task.server, task.sampling, task.workers, journal, reporter.heard)
    except AskingFailed as error:
        return give_up(error)
    finally:
        journal.close()
    reporter.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
