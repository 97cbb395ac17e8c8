"""`fleet demo`: every act is a real command of this product, shown before it runs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType

import typer

from fleet_controller.cli.failures import INTERRUPTED, SOME_HOST_FAILED, CommandFailure
from fleet_controller.demo.engines import SOURCE_VERSION, find_llama_cpp
from fleet_controller.demo.stage import Stage, set_stage, strike
from fleet_controller.demo.tiny_model import make_tiny_model
from fleet_controller.domain.addresses import base_url

HOSTS = ("desk", "rack")
MODEL = "tiny-chat"
QUESTION = "Which answer is right?"
BENCH = ("--prompt", "128", "--generate", "32", "--repetitions", "2", "--yes")


def run_demo(build: bool, keep: bool) -> None:
    """Play it, then clean up, also after Ctrl-C. Exit code 1 where an act failed."""
    started = time.monotonic()
    stage = set_stage(HOSTS)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _play(stage, build)
    except KeyboardInterrupt:
        keep = False
        print("\ninterrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if keep:
            _say_where(stage)
        else:
            _say("Cleaning up: models stopped, agents removed, folders deleted.")
            strike(stage)
    _say(f"Done in {time.monotonic() - started:.0f} s. On your own machines: fleet init, fleet up all, fleet deploy.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _play(stage: Stage, build: bool) -> None:
    _say(
        "fleet puts a language model on every machine of a lab and keeps it running. This demo takes this machine "
        f"for two hosts, {' and '.join(HOSTS)}, and needs no GPU, no SSH and no model hub. "
        f"Everything lives in {stage.folder} and is removed at the end."
    )
    _say("1. Bring the hosts up: a small agent is installed and started on each, without root.")
    _fleet(stage, "up", "all", "--yes", "--manager", "background")
    _say("2. What the hosts are, and what is free on them, live.")
    _fleet(stage, "hosts")
    _say(f"3. A model. Usually a name of `fleet models`; here a tiny one, made on the spot: {MODEL}.")
    make_models(stage.models)
    llama_cpp = find_llama_cpp()
    with_llama_cpp = llama_cpp is not None or build
    _deploy_mlx(stage, HOSTS[:1] if with_llama_cpp else HOSTS)
    if with_llama_cpp:
        _deploy_llama_cpp(stage, llama_cpp)
    else:
        _say("   (llama.cpp is not on this machine; --build would build it from source and use it on one host.)")
    _say("5. The same command again changes nothing, and says so.")
    _fleet(stage, "deploy", str(stage.models / MODEL), "--hosts", HOSTS[0], "--backend", "mlx-lm", "--yes")
    _say("6. What runs where; the agents keep it running, and bring it back after a crash or a reboot.")
    _fleet(stage, "ps")
    _say("7. Ask it something, as any OpenAI-style client would.")
    for host, endpoint, model in _endpoints(stage):
        _ask(host, endpoint, model)
    _say("8. Measure it with each engine's own benchmark; the rows are kept.")
    for host in HOSTS:  # one after the other: here they are the same processor
        _fleet(stage, "bench", MODEL, "--hosts", host, *BENCH)
    _say(
        "9. The matrix: how fast it decodes on which machine (without MODEL: beside the figures that ship with fleet)."
    )
    _fleet(stage, "matrix", MODEL)


def make_models(folder: Path) -> None:
    """<folder>/tiny-chat for MLX-LM and <folder>/tiny-chat.gguf for llama.cpp: the same weights."""
    made = make_tiny_model(folder / "making", "chain")
    made.hf_dir.rename(folder / MODEL)
    made.gguf_path.rename(folder / f"{MODEL}.gguf")
    shutil.rmtree(folder / "making")


def _deploy_mlx(stage: Stage, hosts: tuple[str, ...]) -> None:
    _say(
        "4. Deploy it. The plan comes first: does it fit, and why; what would run. Then the engine is installed where "
        "it is missing (here MLX-LM, from the package index), started, awaited, and asked one real question."
    )
    pattern = ",".join(hosts)
    _fleet(stage, "deploy", str(stage.models / MODEL), "--hosts", pattern, "--backend", "mlx-lm", "--yes")


def _deploy_llama_cpp(stage: Stage, folder: Path | None) -> None:
    if folder is None:
        _say("   The other host gets llama.cpp, built from source (some minutes).")
        engine = ("--backend-version", SOURCE_VERSION)
    else:
        _say("   The other host gets llama.cpp: the binaries of this machine are used as they are.")
        engine = ("--engine-path", str(folder))
    path = str(stage.models / f"{MODEL}.gguf")
    _fleet(stage, "deploy", path, "--quant", "F16", "--hosts", HOSTS[1], "--backend", "llama.cpp", *engine, "--yes")


def _endpoints(stage: Stage) -> list[tuple[str, str, str]]:
    """(host, base URL, model name) of what is deployed, read as a script would: from `--json`."""
    command = [sys.executable, "-m", "fleet_controller.cli", "ps", "--json"]
    answer = subprocess.run(
        command, env=os.environ | stage.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = []
    for host in json.loads(answer.stdout)["hosts"]:
        for service in host["services"]:
            spec = service["spec"]
            found.append((host["host"], base_url(spec["bind_address"], spec["port"]), spec["served_model_name"]))
    return found


def _ask(host: str, endpoint: str, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32}
    url = f"{endpoint}/chat/completions"
    data = json.dumps(body)
    print(f"$ curl {url} -H 'Content-Type: application/json' -d {shlex.quote(data)}")
    request = urllib.request.Request(url, data.encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    print(f"{host} answers: {text.strip()}")


def _fleet(stage: Stage, *arguments: str) -> None:
    shown = [argument for argument in arguments if argument not in ("--manager", "background")]
    print(f"$ {shlex.join(['fleet', *shown])}")
    code = stage.fleet(*arguments)
    if code != 0:
        raise CommandFailure(
            f"the demo stopped: `fleet {arguments[0]}` ended with exit code {code}",
            "what it printed above says why; `fleet doctor` checks this machine",
            SOME_HOST_FAILED,
        )


def _say_where(stage: Stage) -> None:
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in stage.variables.items())
    _say(f"Kept as you asked, in {stage.folder}. Look around with:\n  export {exports}\n  fleet ps")
    print("Remove it later with: fleet stop --all --yes; fleet agent remove all --purge --yes")


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)
