"""One bench beside a real process that starts to compute in mid-run: once, or each time. Prints the job's result.

usage: contaminated_run.py FOLDER MODEL LLAMA_CPP_BIN once|always
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from fleet_agent.jobs.model import BenchStep, DeviceWatch, JobSpec, Step, ToolRef
from fleet_agent.layout import Layout
from support.agent_jobs import logs_of, result_of, running_agent

SPIN = "while True: pass"
ENGINE = "llama.cpp-test-00000000"


def stranger() -> int:
    """A process that is nobody's child here: its parent has ended."""
    code = (
        f"import subprocess; print(subprocess.Popen([{sys.executable!r}, '-c', {SPIN!r}], start_new_session=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


async def main(folder: Path, model: str, binaries: Path, times: str) -> None:
    folder.mkdir()
    os.environ |= {"HOME": str(folder), "FLEET_AGENT_ROOT": str(folder / "fleet"), "FLEET_MACHINE_ID": "namespace",
                   "FLEET_RUNTIME_DIR": str(folder / "run")}  # fmt: skip
    layout = Layout.from_environment()
    layout.ensure()
    install = layout.engines_dir / ENGINE
    (install / "bin").mkdir(parents=True)
    (install / "bin" / "llama-bench").symlink_to(binaries / "llama-bench")
    (install / "install.json").write_text(json.dumps({"adopted_path": str(binaries)}))
    arguments = ("-m", model, "-p", "32", "-n", "4", "-r", "600", "-t", "1", "-o", "json", "--progress")
    watch = DeviceWatch(idle_wait_seconds=60.0, foreign_cpu_percent=20.0, interval_seconds=0.2)
    repeats = 3 if times == "once" else 1
    step = BenchStep(ToolRef(ENGINE, "bin/llama-bench"), arguments, watch=watch, mark="prompt run 5/", repeats=repeats)
    pids: list[int] = []
    async with running_agent(layout) as agent:
        await agent.supervisor.submit(JobSpec("job", "bench", (Step("measure", bench=step),)))
        events = []
        async for event in agent.supervisor.watch("job"):
            events.append(event)
            label = event.progress.label if event.progress is not None else ""
            if "prompt run 5/" in label and "warmup" not in label and (times == "always" or not pids):
                pids.append(stranger())
            if "is void" in label or (event.log is not None and "is void" in event.log.text):
                while pids and times == "always":
                    os.kill(pids.pop(), 9)
                if times == "once" and pids and pids[-1] > 0:
                    os.kill(pids[-1], 9)
                    pids[-1] = -1
        said = [text for text in logs_of(events) if "is void" in text]
        print(json.dumps({**result_of(events), "said": said}))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
