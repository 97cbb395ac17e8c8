"""A chat endpoint whose moods are set by the test: one mood a request, then it answers well for good."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class AnsweringServer(ThreadingHTTPServer):
    """`moods`: "ok", "cut" (the token limit), "broken" (ends in mid-stream), "plain" (no stream), "error" (an event
    of an error), or an HTTP status. `asked` are the bodies in order, with the key that came along."""

    daemon_threads = True

    def __init__(self, moods: list[str], for_good: str = "ok") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moods, self.for_good = moods, for_good
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def mood(self, body: dict[str, Any]) -> str:
        with self.lock:
            self.asked.append(body)
            return self.moods.pop(0) if self.moods else self.for_good


class _Handler(BaseHTTPRequestHandler):
    server: AnsweringServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mood = self.server.mood({**body, "key": self.headers.get("Authorization"), "path": self.path})
        text = "The answer is (C)."
        if mood.isdigit():
            self._whole(int(mood), {"error": {"message": "told so"}})
        elif mood == "plain":
            message = {"message": {"content": text}, "finish_reason": "stop"}
            self._whole(200, {"choices": [message], "usage": {"completion_tokens": 7}})
        else:
            self._stream(mood, text)

    def _whole(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, mood: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in (text[:5], text[5:]):
            self._event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
            if mood == "broken":
                return
        if mood == "error":
            self._event({"error": {"message": "out of memory"}})
            return
        self._event({"choices": [{"delta": {}, "finish_reason": "length" if mood == "cut" else "stop"}]})
        self._event({"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 11}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, document: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def answering_server(*moods: str, for_good: str = "ok") -> Iterator[AnsweringServer]:
    with AnsweringServer(list(moods), for_good) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
