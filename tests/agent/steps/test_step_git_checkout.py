"""A real checkout over https: a repository served by a TLS server of our own on loopback."""

import gzip
import http.server
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_agent.jobs.model import GitCheckoutStep, Step
from support.agent_jobs import Agent, problem_of, result_of

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or shutil.which("openssl") is None, reason="needs git and openssl"
)
AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.org")


class GitServer(http.server.BaseHTTPRequestHandler):
    """git's own smart HTTP (`git http-backend`, a CGI program); filters allowed, as the usual forges do."""

    web = ""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

    def answer(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": self.web,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
        }
        made = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True).stdout
        head, _, content = made.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Origin:
    """A repository, and the URL that git clones it from."""

    def __init__(self, folder: Path) -> None:
        self.work, self.bare, self.url = folder / "work", folder / "web" / "engine.git", ""
        self.work.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", ".")

    def git(self, *words: object) -> str:
        argv = ["git", *AUTHOR, *map(str, words)]
        return subprocess.run(argv, cwd=self.work, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, text: str) -> str:
        (self.work / "version.txt").write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", text)
        self.publish()
        return self.git("rev-parse", "HEAD")

    def publish(self) -> None:
        shutil.rmtree(self.bare, ignore_errors=True)
        self.git("clone", "-q", "--bare", self.work, self.bare)
        self.git("-C", self.bare, "config", "uploadpack.allowFilter", "true")
        self.git("-C", self.bare, "config", "uploadpack.allowAnySHA1InWant", "true")


@pytest.fixture
def origin(tmp_path: Path, agent: Agent) -> Iterator[Origin]:
    one = Origin(tmp_path / "origin")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    settings = f"[http]\n\tsslCAInfo = {certificate}\n"
    (tmp_path / "host" / ".gitconfig").write_text(settings)  # the home of the agent's host
    handler = type("Handler", (GitServer,), {"web": str(tmp_path / "origin" / "web")})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    one.url = f"https://localhost:{server.server_port}/engine.git"
    yield one
    server.shutdown()
    server.server_close()
    thread.join()


async def test_tag_branch_and_commit(agent: Agent, origin: Origin) -> None:
    first = origin.commit("one")
    origin.git("tag", "b1")
    second = origin.commit("two")
    folder = agent.layout.sources_dir / "engine"

    async def check_out(ref: str, job_id: str) -> tuple[str, str, bool]:
        result = result_of(
            await agent.run(Step("git", git_checkout=GitCheckoutStep(origin.url, ref, "engine")), job_id=job_id)
        )
        assert result["path"] == str(folder)
        return result["commit"], (folder / "version.txt").read_text(), result["changed"]

    assert await check_out("b1", "tag") == (first, "one", True)
    assert await check_out("b1", "again") == (first, "one", False)
    assert await check_out("main", "branch") == (second, "two", True)
    assert await check_out(first, "commit") == (first, "one", True)
    third = origin.commit("three")
    assert await check_out("main", "moved") == (third, "three", True)


async def test_an_unknown_ref_and_an_unknown_repository_leave_nothing(agent: Agent, origin: Origin) -> None:
    origin.commit("one")
    step = GitCheckoutStep(origin.url, "no-such-tag", "engine")
    assert problem_of(await agent.run(Step("git", git_checkout=step), job_id="ref"))[0] == "unknown-ref"
    step = GitCheckoutStep(origin.url.replace("engine", "other"), "main", "engine")
    assert problem_of(await agent.run(Step("git", git_checkout=step), job_id="url"))[0] == "git-refused"
    assert list(agent.layout.sources_dir.iterdir()) == []
