"""What llama-perplexity really printed, and that a run which dropped its last line is none."""

from pathlib import Path

import pytest

from fleet_controller.evaluating import perplexity
from fleet_controller.evaluating.perplexity import PerplexityError, parse

DATA = Path(__file__).parent / "data"


def printed(name: str) -> tuple[str, str]:
    return (DATA / f"llama-perplexity.{name}.out").read_text(), (DATA / f"llama-perplexity.{name}.err").read_text()


@pytest.mark.parametrize(
    ("name", "value", "error"), [("random.F16", 895.4685, 28.24325), ("random.Q4_K_M", 890.08, 28.24339)]
)
def test_the_final_estimate_is_read_from_the_line_of_the_eta(name: str, value: float, error: float) -> None:
    found = parse(*printed(name))
    assert (found.perplexity.value, found.perplexity.error) == (value, error)
    assert (found.chunks, found.context_tokens, found.tokens) == (8, 256, 8 * 127)
    assert found.divergence is None
    assert found.perplexity.interval == pytest.approx((value - 1.96 * error, value + 1.96 * error), rel=1e-4)


def test_a_comparison_gives_divergence_both_perplexities_and_the_share_of_equal_successors() -> None:
    found = parse(*printed("kl.Q2_K"))
    assert found.divergence is not None and found.base_perplexity is not None and found.same_top is not None
    assert (found.divergence.value, found.divergence.error) == (0.010974, 0.000079)
    assert (found.perplexity.value, found.base_perplexity.value) == (722.176746, 725.547857)
    assert found.same_top.value == pytest.approx(0.61909)


def test_a_run_without_its_last_line_is_no_result() -> None:
    out, err = printed("random.F16")
    compared = printed("kl.Q2_K")[0]
    assert perplexity.REQUIRED_TEXT in err and perplexity.REQUIRED_KL_TEXT in compared
    # A real run that ended with 0: the table of chunks, whose header names the last column, and no statistics.
    table, words = printed("kl.dropped")
    assert "Same top p" in table and perplexity.REQUIRED_KL_TEXT not in table
    with pytest.raises(PerplexityError, match="without its final estimate"):
        parse(table, words)
    with pytest.raises(PerplexityError, match="without its final estimate"):
        parse(out, err.partition("Final estimate")[0])
    with pytest.raises(PerplexityError, match="over how many chunks"):
        parse(out, "")


def test_what_is_no_number_is_no_figure() -> None:
    out, err = printed("random.F16")
    with pytest.raises(PerplexityError):
        parse(out, err.replace("895.4685", "nan"))


def test_the_base_is_written_once_and_compared_with() -> None:
    words = perplexity.arguments("/m.gguf", "/c.txt", 512, 64, gpu=True)
    assert words == ("-m", "/m.gguf", "-f", "/c.txt", "-c", "512", "--chunks", "64", "-ngl", "999")
    assert perplexity.with_base(words, "/b", compare=False)[-2:] == ("--kl-divergence-base", "/b")
    assert perplexity.with_base(words, "/b", compare=True)[-3:] == ("--kl-divergence-base", "/b", "--kl-divergence")
    # A real one: 8 chunks of 256 tokens and a vocabulary of 512 words took 1,056,724 bytes with its header and tokens.
    assert perplexity.base_bytes(512, 256, 8) == pytest.approx(1_056_724, rel=0.01)
