"""llama-perplexity: its command lines, what its files take, and what it printed. Pure.

Chunk values go to stdout and "Final estimate" to stderr, sometimes on a line with the ETA; sometimes it drops its last
output and still ends with 0 (3 of 62 runs: facts/backends.md), so a run counts only with the text named here. What it
prints after ± is one standard error (tools/perplexity/perplexity.cpp).
"""

import re
from typing import Any

from fleet_controller.domain.base import Frozen

TOOL = "bin/llama-perplexity"
PROTOCOL, VERSION = "llama-perplexity", "1"
CORPUS = "wikitext-2 test"
DEFAULT_CONTEXT, DEFAULT_CHUNKS = 512, 64
REQUIRED_TEXT = "Final estimate: PPL"
# The last line of the statistics; without its colon it would be found in the header of the chunks' table, too.
REQUIRED_KL_TEXT = "Same top p:"
REPEATS = 3
Z = 1.959964
BASE_FILE = "base.kld"
CORPUS_FILE = "corpus.txt"
_NUMBER = r"(-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
_FINAL = re.compile(rf"Final estimate: PPL = {_NUMBER} \+/- {_NUMBER}")
_CHUNKS = re.compile(r"over (\d+) chunks, n_ctx=(\d+)")
_LINES = {
    "perplexity": re.compile(rf"Mean PPL\(Q\)\s*:\s*{_NUMBER} ±\s*{_NUMBER}"),
    "base_perplexity": re.compile(rf"Mean PPL\(base\)\s*:\s*{_NUMBER} ±\s*{_NUMBER}"),
    "divergence": re.compile(rf"Mean\s+KLD:\s*{_NUMBER} ±\s*{_NUMBER}"),
    "same_top": re.compile(rf"Same top p:\s*{_NUMBER} ±\s*{_NUMBER}"),
}


class PerplexityError(Exception):
    """Output that holds no figure: the run is to be repeated."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code, self.message, self.remedy = "output-incomplete", message, "repeat the command"


class Measured(Frozen):
    """A figure and its standard error."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.value - Z * self.error, self.value + Z * self.error


class PerplexityOutput(Frozen):
    """What one run printed; divergence and what is of the base only where it was compared with one.

    divergence: nats per token. same_top: share of tokens, 0 to 1, whose likeliest successor is the base's.
    """

    perplexity: Measured
    chunks: int
    context_tokens: int
    divergence: Measured | None = None
    base_perplexity: Measured | None = None
    same_top: Measured | None = None

    @property
    def tokens(self) -> int:
        """Scored are the tokens of a chunk's second half, all but its last."""
        return self.chunks * (self.context_tokens - 1 - self.context_tokens // 2)


def arguments(model: str, corpus: str, context: int, chunks: int, gpu: bool) -> tuple[str, ...]:
    layers = ("-ngl", "999") if gpu else ()
    return ("-m", model, "-f", corpus, "-c", str(context), "--chunks", str(chunks), *layers)


def with_base(words: tuple[str, ...], base_file: str, compare: bool) -> tuple[str, ...]:
    """Writing the base's probabilities to a file, or comparing with them."""
    return (*words, "--kl-divergence-base", base_file, *(("--kl-divergence",) if compare else ()))


def base_bytes(vocabulary: int, context: int, chunks: int) -> int:
    """Of the file of probabilities: 16 bits for each word of the vocabulary, at each token that is scored, beside a
    scale (perplexity.cpp, log_softmax into uint16)."""
    return chunks * (context - 1 - context // 2) * (vocabulary + 4) * 2


def parse(stdout: str, stderr: str) -> PerplexityOutput:
    """Raises PerplexityError where the figures are missing or no numbers."""
    sizes = _CHUNKS.search(stderr)
    if sizes is None:
        raise PerplexityError("llama-perplexity did not say over how many chunks it went")
    common: dict[str, Any] = {"chunks": int(sizes[1]), "context_tokens": int(sizes[2])}
    found = {name: _measured(pattern.search(stdout)) for name, pattern in _LINES.items()}
    if found["divergence"] is not None and found["perplexity"] is not None:
        top = found["same_top"]
        share = Measured(value=top.value / 100, error=top.error / 100) if top is not None else None
        return PerplexityOutput(**common, **{**found, "same_top": share})
    final = _measured(_FINAL.search(stderr) or _FINAL.search(stdout))
    if final is None:
        raise PerplexityError("llama-perplexity ended without its final estimate")
    return PerplexityOutput(**common, perplexity=final)


def _measured(found: re.Match[str] | None) -> Measured | None:
    if found is None or "nan" in found[0] or "inf" in found[0]:
        return None
    return Measured(value=float(found[1]), error=float(found[2]))
