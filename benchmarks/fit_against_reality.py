"""Memory as fleet predicts it against what llama-server takes: python -m benchmarks.fit_against_reality

    --llama-server PATH [--models FOLDER] [--shapes qwen3-8b,...] [--divisor 8] [--quantization Q8_0]
    [--contexts 4096,16384,65536] [--prompt-tokens 520] [--gpu] [--boundary [--boundary-contexts 4096,...]]
    [--work FOLDER] [--json FILE] [--logs FOLDER]

For each model (the .gguf files of a folder, else files of real shapes made on the spot, divided by `--divisor`) and
each context the real server is started as fleet starts it, is asked for a prompt longer than one batch, and then looked
at: the buffers in its log, its resident memory, and on a GPU what the driver says that it holds more than before.

`--boundary`: at each of the contexts the same server with as much memory as it took, times 0.95 and 1.05. On the CPU a
memory cgroup sets the limit (root, and the file read into memory instead of mapped, so that nothing of it can be
dropped), and the prompt fills the whole context, since pages that were only reserved cost nothing there until they are
used; on a GPU another process holds the rest. What fleet says of such a host must be what happens.

Needs no network. On a machine with a GPU: torch (for the process that holds the rest) and pynvml.
"""

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shaped_gguf import SHAPES, scaled, write_gguf
from fleet_controller.backends import BACKENDS
from fleet_controller.backends.llama_cpp_memory import parse_buffers
from fleet_controller.domain.plan import DeployRequest, FitVerdict
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.hub.local_models import model_of_path
from fleet_controller.planning.devices import RAM, VRAM, MemoryPool
from fleet_controller.planning.fit import Fit
from fleet_controller.planning.fit_at import fit_at

BOUNDARY = (0.95, 1.05)
START_LIMIT_SECONDS = 240.0
PROMPT_TOKENS = 520
# A prompt that fills a long context takes minutes on a CPU.
PROMPT_LIMIT_SECONDS = 3600.0
# Tokens of a context that a prompt that fills it leaves.
ROOM_FOR_ANSWER = 8
CGROUP = Path("/sys/fs/cgroup/memory")
# What each server held when it was ready, before the prompt.
READY_BYTES: dict[int, int] = {}
KIND_OF_LINE = {
    "weights": "model", "KV cache": "KV", "window cache": "KV", "recurrent state": "RS", "compute buffers": "compute",
}  # fmt: skip


@dataclass
class Measured:
    """One start: predicted and real bytes by line, and together.

    `real_bytes`: on a GPU what the driver says. On the CPU the most that was resident, or what the server reserved and
    a full context uses, where that is more: its buffers, and what it held beside them when it was ready.
    """

    model: str
    context_tokens: int
    predicted_bytes: int
    real_bytes: int
    resident_bytes: int
    predicted_host_bytes: int
    lines: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.real_bytes - 1


@dataclass
class Bound:
    """One start with little memory: what fleet said of it, and whether the server ran."""

    model: str
    context_tokens: int
    share: float
    limit_bytes: int
    fits: bool
    ran: bool


def build_of(server: Path) -> str:
    """As "b11434", from what `llama-server --version` prints; "" where it tells none."""
    ran = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    return BACKENDS["llama.cpp"].parse_version(ran.stdout + ran.stderr) or ""


def predicted(
    resolved: ResolvedModel, build: str, context: int, *, gpu: bool, free_bytes: int = 1 << 50, reserve: int | None = 0
) -> Fit:
    """What fleet says of the model on a host with so much free memory, without its reserve unless `reserve` is None."""
    pool = MemoryPool(kind=VRAM if gpu else RAM, free_bytes=free_bytes, total_bytes=1 << 50)
    request = DeployRequest(model=resolved.name, context_length=context, backend_version=build)
    return fit_at(BACKENDS["llama.cpp"], resolved.artifacts[0], context, request, resolved, pool, reserve)


@contextmanager
def serving(
    server: Path,
    model: Path,
    context: int,
    log: Path,
    more: Sequence[str] = (),
    prompt_tokens: int = PROMPT_TOKENS,
) -> Iterator[subprocess.Popen[bytes]]:
    """The server as fleet starts it, with the buffers in its log; ended at the end."""
    port = _free_port()
    arguments = [str(server), "--model", str(model), "--jinja", "--ctx-size", str(context), "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--alias", "m", "--metrics", "--log-verbosity", "4", *more]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_ready(process, port)
        READY_BYTES[process.pid] = resident_bytes(process.pid) if process.poll() is None else 0
        if process.poll() is None and prompt_tokens and not _prompt(port, prompt_tokens):
            _let_end(process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)


def _prompt(port: int, tokens: int) -> bool:
    """A prompt of more than one batch, as token numbers: it uses the buffers that were only reserved. Answered?"""
    prompt = [5 + number % 90 for number in range(tokens)]
    body = json.dumps({"prompt": prompt, "n_predict": 1, "stream": True})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PROMPT_LIMIT_SECONDS) as answer:
            return bool(answer.read())
    except (OSError, http.client.HTTPException):
        return False


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """A server that gave no answer has been killed, or is about to be."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        print("  the prompt was not answered, and the server goes on", file=sys.stderr)


def resident_bytes(pid: int) -> int:
    """The most that the process held: what is mapped of the file, and its own."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


class Gpu:
    """The first NVIDIA GPU, through NVML."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        self._device = pynvml.nvmlDeviceGetHandleByIndex(0)

    @property
    def name(self) -> str:
        return str(self._nvml.nvmlDeviceGetName(self._device))

    def used_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used)

    def free_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).free)

    def settled_used_bytes(self) -> int:
        """What is in use once the driver has taken back what the last process held."""
        before = self.used_bytes()
        for _ in range(50):
            time.sleep(0.1)
            now = self.used_bytes()
            if now == before:
                return now
            before = now
        return before

    @contextmanager
    def filled(self, leave_bytes: int) -> Iterator[None]:
        """Another process holds all but `leave_bytes`, give or take 2 MiB."""
        script = (
            "import sys, torch\n"
            "held = []\n"
            "for line in sys.stdin:\n"
            "    held.append(torch.empty(int(line), dtype=torch.uint8, device='cuda'))\n"
            "    torch.cuda.synchronize(); print('held', flush=True)\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdin is not None and holder.stdout is not None
        try:
            for first in (True, False):  # the first piece brings the process's own context
                size = (64 << 20) if first else (self.free_bytes() - leave_bytes) >> 21 << 21
                if size > 0:
                    holder.stdin.write(f"{size}\n")
                    holder.stdin.flush()
                    holder.stdout.readline()
            yield
        finally:
            holder.stdin.close()
            holder.wait(30)


def measure(
    server: Path, model: Path, context: int, build: str, gpu: Gpu | None, logs: Path, prompt_tokens: int
) -> Measured:
    """One start, beside its prediction."""
    resolved = model_of_path(str(model), "")
    fit = predicted(resolved, build, context, gpu=gpu is not None)
    log = logs / f"{model.stem}-{context}.log"
    before = gpu.settled_used_bytes() if gpu else 0
    with serving(server, model, context, log, prompt_tokens=prompt_tokens) as process:
        if process.poll() is not None:
            raise SystemExit(f"{server} ended with {process.returncode}; see {log}")
        resident = resident_bytes(process.pid)
        held = gpu.used_bytes() - before if gpu else resident
    buffers = parse_buffers(log.read_text(encoding="utf-8", errors="replace"))
    found: dict[str, int] = {}
    for buffer in buffers:
        # Weights that were copied into another order lie in the mapped file as well, whose pages can be dropped.
        if buffer.on_device == (gpu is not None) and "REPACK" not in buffer.place:
            found[buffer.kind] = found.get(buffer.kind, 0) + buffer.size_bytes
    touched = sum(size for kind, size in found.items() if kind != "compute")
    copied = sum(buffer.size_bytes for buffer in buffers if "REPACK" in buffer.place)
    beside = 0 if gpu else max(READY_BYTES[process.pid] - touched - copied, 0)
    real = max(held - (0 if gpu else copied), sum(found.values()) + beside)
    lines = {line.what: (line.bytes, found.get(KIND_OF_LINE.get(line.what, ""), 0)) for line in fit.lines}
    known = sum(size for _, size in lines.values())
    rest = sum(size for what, (size, _) in lines.items() if what not in KIND_OF_LINE)
    lines = {what: pair for what, pair in lines.items() if what in KIND_OF_LINE}
    lines["context and process"] = (rest, real - known)
    on_host = sum(line.bytes for line in fit.host_lines)
    return Measured(model.stem, context, fit.predicted_bytes, real, resident, on_host, lines)


def boundary(server: Path, model: Path, taken: Measured, build: str, gpu: Gpu | None, logs: Path) -> Iterator[Bound]:
    """The server with a little less and a little more memory than it took."""
    resolved = model_of_path(str(model), "")
    for share in BOUNDARY:
        limit = int(taken.real_bytes * share)
        fit = predicted(
            resolved,
            build,
            taken.context_tokens,
            gpu=gpu is not None,
            free_bytes=limit,
            reserve=None if gpu is None else 0,
        )
        log = logs / f"{model.stem}-{taken.context_tokens}-{share}.log"
        ran = (
            _runs_on_gpu(server, model, taken, limit, gpu, log)
            if gpu
            else _runs_in_cgroup(server, model, taken, limit, log)
        )
        yield Bound(model.stem, taken.context_tokens, share, limit, fit.verdict is FitVerdict.FITS, ran)


def _runs_on_gpu(server: Path, model: Path, taken: Measured, limit: int, gpu: Gpu, log: Path) -> bool:
    gpu.settled_used_bytes()
    with gpu.filled(limit), serving(server, model, taken.context_tokens, log, ("--fit", "off")) as process:
        return process.poll() is None


def _runs_in_cgroup(server: Path, model: Path, taken: Measured, limit: int, log: Path) -> bool:
    group = CGROUP / f"fleet-fit-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit), encoding="ascii")
        wrapper = log.with_suffix(".sh")
        wrapper.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {server} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        whole = taken.context_tokens - ROOM_FOR_ANSWER
        with serving(wrapper, model, taken.context_tokens, log, _unmapped(server), whole) as process:
            return process.poll() is None
    finally:
        group.rmdir()


def _unmapped(server: Path) -> tuple[str, ...]:
    """The option that has the file read instead of mapped, by the build's own list."""
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=False).stdout
    return ("--load-mode", "none") if "--load-mode" in text else ("--no-mmap",)


def _models(arguments: argparse.Namespace, work: Path) -> list[Path]:
    if arguments.models:
        return sorted(Path(arguments.models).glob("*.gguf"))
    made = []
    for name in arguments.shapes.split(","):
        shape = scaled(SHAPES[name], arguments.divisor) if arguments.divisor > 1 else SHAPES[name]
        path = work / f"{shape.name}-{arguments.quantization}.gguf"
        write_gguf(path, shape, arguments.quantization)
        made.append(path)
    return made


def _told(bound: Bound) -> str:
    said, happened = "fits" if bound.fits else "does not fit", "ran" if bound.ran else "failed"
    return f"{bound.model} at {bound.context_tokens}, {bound.share:g} x what it took: fleet says {said}; it {happened}"


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def _print_measured(item: Measured) -> None:
    print(f"| {item.model} | {item.context_tokens} | **together** | {_mebibytes(item.predicted_bytes)} | "
          f"{_mebibytes(item.real_bytes)} | {item.error:+.1%} |")  # fmt: skip
    for what, (guess, real) in item.lines.items():
        share = f"{guess / real - 1:+.1%}" if real > 0 else "-"
        print(f"| | | {what} | {_mebibytes(guess)} | {_mebibytes(real)} | {share} |", flush=True)
    if item.predicted_host_bytes:
        print(f"| | | host memory | {_mebibytes(item.predicted_host_bytes)} | {_mebibytes(item.resident_bytes)} | |")


def main() -> None:
    """Runs it and says 1 where a prediction is off by more than 5 %, or a verdict is not what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", required=True, type=Path)
    parser.add_argument("--models", default="")
    parser.add_argument("--shapes", default="qwen3-8b,qwen3-30b-a3b,glm-4.7-flash,qwen3.5-9b,qwen3.5-35b-a3b")
    parser.add_argument("--divisor", type=int, default=8)
    parser.add_argument("--quantization", default="Q8_0")
    parser.add_argument("--contexts", default="4096,16384,65536")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="0: none, which is quicker on a CPU")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--boundary", action="store_true")
    parser.add_argument("--boundary-contexts", default="", help="Where the contexts are more than should be filled.")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--logs", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-fit-") as temporary:
        work = arguments.work or Path(temporary)
        logs = arguments.logs or Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        measured, bounds, device = _run(arguments, work, logs)
    print(f"\n{device}: largest error {max(abs(item.error) for item in measured):.1%} over {len(measured)} starts")
    wrong = [bound for bound in bounds if bound.share in BOUNDARY and bound.fits != bound.ran]
    for bound in bounds:
        print(_told(bound))
    if arguments.json:
        document = {
            "device": device,
            "measured": [asdict(item) for item in measured],
            "bounds": [asdict(item) for item in bounds],
        }
        arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    sys.exit(1 if wrong or any(abs(item.error) > 0.05 for item in measured) else 0)


def _run(arguments: argparse.Namespace, work: Path, logs: Path) -> tuple[list[Measured], list[Bound], str]:
    gpu = Gpu() if arguments.gpu else None
    build = build_of(arguments.llama_server)
    measured: list[Measured] = []
    bounds: list[Bound] = []
    print("| model | context | line | predicted MiB | real MiB | error |\n|---|---|---|---|---|---|")
    contexts = _numbers(arguments.contexts)
    bounded = (_numbers(arguments.boundary_contexts) or contexts) if arguments.boundary else []
    for model in _models(arguments, work):
        for context in contexts:
            taken = measure(arguments.llama_server, model, context, build, gpu, logs, arguments.prompt_tokens)
            measured.append(taken)
            _print_measured(taken)
            if context in bounded:
                for bound in boundary(arguments.llama_server, model, taken, build, gpu, logs):
                    bounds.append(bound)
                    print(_told(bound), file=sys.stderr, flush=True)
        if not arguments.models and arguments.work is None:
            model.unlink()
    return measured, bounds, f"{gpu.name if gpu else 'CPU'}, llama.cpp {build}"


if __name__ == "__main__":
    main()
