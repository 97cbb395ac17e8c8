"""A STAND-IN for LM Studio's `lms`, for tests: the control is imitated, the tokens are real. No LM Studio is in it.

`lms` has the flags, the JSON shapes and the streams of lmstudio-ai/lms (source read at 07b7252, nothing run): people's
text on stderr, JSON on stdout. Its daemon starts the real llama-server for each loaded model, and answers on one port
by the model's identifier, with `/lmstudio-greeting` beside it. State lies in the folder `state` beside the program:
config.json (what can be fetched, where llama-server is), models/ (the store), calls.jsonl (every command line).
"""

import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STATE = Path(__file__).resolve().parent / "state"
SOCKET = STATE / "daemon.sock"
STORE = STATE / "models"


def install(folder: Path, llama_server: Path, fetchable: dict[str, Path]) -> Path:
    """Puts the program `lms` into `folder`, whose path must be short; `fetchable` is what `lms get` finds, by name."""
    (folder / "state" / "models").mkdir(parents=True)
    config = {"llama_server": str(llama_server), "fetchable": {name: str(path) for name, path in fetchable.items()}}
    (folder / "state" / "config.json").write_text(json.dumps(config))
    program = folder / "lms"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text(encoding='utf-8')}", encoding="utf-8")
    program.chmod(0o755)
    return program


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> int:
    say(f"Error: {text}")
    return 1


# --- the daemon: one server for all models ---


class Daemon:
    def __init__(self) -> None:
        self.config = json.loads((STATE / "config.json").read_text())
        self.loaded: dict[str, dict[str, Any]] = {}
        self.servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self.streams: list[socket.socket] = []
        self.http: http.server.ThreadingHTTPServer | None = None
        self.lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            answer: dict[str, Any] = getattr(self, f"do_{request.pop('do')}")(**request)
            return answer

    def do_info(self) -> dict[str, Any]:
        port = self.http.server_address[1] if self.http else None
        return {"pid": os.getpid(), "port": port, "loaded": list(self.loaded.values())}

    def do_server(self, bind: str, port: int) -> dict[str, Any]:
        if self.http is not None:
            if self.http.server_address[1] == port:
                return {}
            self.http.shutdown()
            self.http.server_close()
        try:
            self.http = http.server.ThreadingHTTPServer((bind, port), handler_of(self))
        except OSError as error:
            return {"error": str(error)}
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return {}

    def do_load(self, path: str, identifier: str, context: int, parallel: int | None) -> dict[str, Any]:
        model = next((one for one in downloaded() if one["path"] == path), None)
        if model is None:
            return {"error": f'Model not found\n\n  No model found with path being exactly "{path}".'}
        name, number = identifier, 2
        while name in self.loaded:
            name, number = f"{identifier}:{number}", number + 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = [self.config["llama_server"], "-m", model["file"], "--host", "127.0.0.1", "--port", str(port)]
        argv += ["-c", str(context), "-np", str(parallel or 1), "--alias", name]
        with (STATE / f"llama-{port}.log").open("wb") as log:
            server = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while server.poll() is None:
            try:
                if get(port, "/health").status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.05)
        else:
            return {"error": "Failed to load model"}
        self.servers[name] = (server, port)
        shown = {key: value for key, value in model.items() if key != "file"}
        more = {"ttlMs": None, "lastUsedTime": None, "contextLength": context, "status": "idle", "queued": 0}
        self.loaded[name] = {**shown, "identifier": name, **more, "parallel": parallel, "_pid": server.pid}
        return {"identifier": name}

    def do_unload(self, identifier: str) -> dict[str, Any]:
        if identifier not in self.loaded:
            return {"missing": True}
        server, _ = self.servers.pop(identifier)
        del self.loaded[identifier]
        server.terminate()
        server.wait()
        return {}

    def tell(self, data: dict[str, Any]) -> None:
        line = json.dumps({"timestamp": int(time.time() * 1000), "data": data}).encode() + b"\n"
        for stream in tuple(self.streams):
            try:
                stream.sendall(line)
            except OSError:
                self.streams.remove(stream)

    def end(self, *_: object) -> None:
        for server, _port in self.servers.values():
            server.kill()
        SOCKET.unlink(missing_ok=True)
        os._exit(0)

    def serve(self) -> None:
        signal.signal(signal.SIGTERM, self.end)
        SOCKET.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(SOCKET))
            listener.listen()
            (STATE / "daemon.pid").write_text(str(os.getpid()))
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        request = json.loads(connection.makefile("rb").readline())
        if request["do"] == "stream":
            self.streams.append(connection)
            return
        connection.sendall(json.dumps(self.ask(request)).encode() + b"\n")
        connection.close()


def get(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse()


def handler_of(daemon: Daemon) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status: int, document: object) -> None:
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/lmstudio-greeting":
                self.reply(200, {"lmstudio": True})
            elif self.path == "/v1/models":
                ids = [{"id": name, "object": "model", "owned_by": "organization_owner"} for name in daemon.loaded]
                self.reply(200, {"object": "list", "data": ids})
            else:
                self.reply(200, {"error": f"Unexpected endpoint or method. (GET {self.path})"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = json.loads(body).get("model", "")
            if name not in daemon.servers:
                self.reply(
                    404, {"error": {"message": f'Model "{name}" is not loaded', "type": "invalid_request_error"}}
                )
                return
            connection = http.client.HTTPConnection("127.0.0.1", daemon.servers[name][1], timeout=60)
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            self.reply(answer.status, text)
            stats = {"stopReason": "eosFound", "tokensPerSecond": json.loads(text)["timings"]["predicted_per_second"]}
            daemon.tell({"type": "llm.prediction.output", "modelIdentifier": name, "output": "...", "stats": stats})

        def log_message(self, *_: object) -> None:
            pass

    return Handler


# --- the command line ---


def downloaded() -> list[dict[str, Any]]:
    """As `lms ls --json`, with the file: a virtual model has the path <owner>/<name>, another its file's."""
    found = []
    for file in sorted(STORE.glob("*/*/*.gguf")):
        owner, name = file.parent.parent.name, file.parent.name
        path = f"{owner}/{name}" if (file.parent / "virtual").exists() else f"{owner}/{name}/{file.name}"
        base = {"type": "llm", "modelKey": f"{owner}/{name}", "format": "gguf", "displayName": name, "publisher": owner}
        more = {"path": path, "sizeBytes": file.stat().st_size, "indexedModelIdentifier": path, "vision": False}
        rest = {"deviceIdentifier": None, "trainedForToolUse": False, "maxContextLength": 4096, "file": str(file)}
        found.append({**base, **more, **rest})
    return found


def running() -> dict[str, Any] | None:
    try:
        return ask(do="info")
    except OSError:
        return None


def ask(**request: object) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(SOCKET))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
        return answer


def wake() -> dict[str, Any]:
    """Every command of the real lms starts the daemon where it does not run."""
    info = running()
    if info is None:
        subprocess.Popen(
            [sys.executable, __file__, "__daemon"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    while info is None:
        time.sleep(0.05)
        info = running()
    return info


def option(words: list[str], *names: str) -> str | None:
    return next((words[position + 1] for position, word in enumerate(words) if word in names), None)


def command_daemon(words: list[str]) -> int:
    before = running()
    if words[0] == "up":
        pid = wake()["pid"]
        print(f"The daemon is already running (PID: {pid})." if before else f"llmster started (PID: {pid}).")
    elif before is None:
        return fail("The daemon is not running.")
    elif words[0] == "down":
        os.kill(before["pid"], signal.SIGTERM)
    return 0


def command_server(words: list[str]) -> int:
    if words[0] == "status":
        port = (running() or {}).get("port")
        print(json.dumps({"running": port is not None, **({"port": port} if port else {})}))
        return 0
    wake()
    port = int(option(words, "-p", "--port") or 1234)
    answer = ask(do="server", bind=option(words, "--bind") or "127.0.0.1", port=port)
    if "error" in answer:
        return fail("Failed to verify the server is running. Please try to use another port.")
    say(f"Success! Server is now running on port {port}")
    return 0


def command_get(words: list[str]) -> int:
    wake()
    name = words[0]
    source = json.loads((STATE / "config.json").read_text())["fetchable"].get(name)
    if source is None:
        return fail(f"Model {name} was not found")
    folder = STORE / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / "model.gguf")
    (folder / "virtual").touch()
    say("Finalizing download...\nDownload completed.")
    return 0


def command_import(words: list[str]) -> int:
    target = STORE / str(option(words, "--user-repo")) / Path(words[-1]).name
    if target.exists():
        return fail(f"Target file already exists: {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(words[-1])
    say(f"Symbolic link created at {target}")
    return 0


def command_load(words: list[str]) -> int:
    wake()
    path = next(word for word in words if "/" in word)
    parallel = option(words, "--parallel")
    context = int(option(words, "-c", "--context-length") or 4096)
    name = option(words, "--identifier") or path
    answer = ask(do="load", path=path, identifier=name, context=context, parallel=int(parallel) if parallel else None)
    if "error" in answer:
        return fail(answer["error"])
    say("Model loaded successfully in 0.05s.\n(1.2 MB)")
    say(f'To use the model in the API/SDK, use the identifier "{answer["identifier"]}".')
    return 0


def command_unload(words: list[str]) -> int:
    wake()
    if ask(do="unload", identifier=words[0]).get("missing"):
        say(f'Model Not Found\n\n  Cannot find a model with the identifier "{words[0]}".')
    else:
        say(f'Model "{words[0]}" unloaded.')
    return 0


def command_ps(words: list[str]) -> int:
    loaded = [{key: one[key] for key in one if key != "_pid"} for one in wake()["loaded"]]
    print(json.dumps(loaded))
    return 0


def command_ls(words: list[str]) -> int:
    print(json.dumps([{key: one[key] for key in one if key != "file"} for one in downloaded()]))
    return 0


def command_log(words: list[str]) -> int:
    wake()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(SOCKET))
        connection.sendall(b'{"do": "stream"}\n')
        for line in connection.makefile("r"):
            print(line, end="", flush=True)
    return fail("The connection to LM Studio was lost.")


def command_runtime(words: list[str]) -> int:
    wake()
    if words[0] != "update" or "-y" not in words[1:]:
        return fail("Cannot prompt for confirmation in a non-interactive environment. Re-run with --yes.")
    say("Checking updates for selected installed runtime extensions... (Pass --all to include all)")
    say("All matching runtime extensions are already up-to-date.")
    return 0


def command_version(words: list[str]) -> int:
    print(json.dumps({"version": "stand-in"}))
    return 0


def main(words: list[str]) -> int:
    if words == ["__daemon"]:
        Daemon().serve()
    with (STATE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    hung = STATE / f"hang-{words[0]}"  # a test makes this command hang by making this file
    while hung.exists():
        time.sleep(0.05)
    code: int = globals()[f"command_{words[0]}"](words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
