"""A text for clients that want a book by http: the same on every host, made here, so that nothing is fetched.

It is plain English in short sentences. What speculative decoding makes of it depends on the text, which is the reason
why there is one text for all hosts.
"""

import contextlib
import random
import threading
from collections.abc import Iterator

CORPUS_SENTENCES = 12_000
_SEED = 20241107
_SUBJECTS = (
    "the old engineer", "a young doctor", "the captain of the ship", "my neighbour", "the library", "her brother",
    "the quiet valley", "a traveller from the north", "the committee", "every student", "the river", "our teacher",
)  # fmt: skip
_VERBS = (
    "described", "remembered", "measured", "found", "repaired", "carried", "explained", "followed", "lost", "admired",
    "crossed", "painted", "counted", "understood", "forgot",
)  # fmt: skip
_OBJECTS = (
    "the long road to the harbour", "a letter with a broken seal", "the results of the second experiment",
    "three boxes of glass plates", "the light above the mountains", "an answer that nobody expected",
    "the machine in the cellar", "the history of the village", "a map of the eastern coast", "the price of bread",
)  # fmt: skip
_ENDINGS = (
    "before the rain began", "although it was late", "and said nothing more", "as if it were the first time",
    "while the others slept", "because the winter was near", "with great care", "until the lamps went out",
)  # fmt: skip


def corpus() -> bytes:
    """About 0.9 MB of text, 200,000 tokens; the same bytes every time."""
    source = random.Random(_SEED)
    sentences = (
        f"{source.choice(_SUBJECTS).capitalize()} {source.choice(_VERBS)} {source.choice(_OBJECTS)} "
        f"{source.choice(_ENDINGS)}."
        for _ in range(CORPUS_SENTENCES)
    )
    return "\n".join(sentences).encode()


@contextlib.contextmanager
def served_corpus() -> Iterator[str]:
    """The URL of the text on a loopback port, for as long as the block runs."""
    import http.server  # only where a client wants a book: the agent's server process checks steps and stays light

    text = corpus()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="corpus", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/book.txt"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
