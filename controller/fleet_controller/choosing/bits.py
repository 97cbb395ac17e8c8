"""Bits a weight: what a quantization's name says where nobody knows how many weights there are, and how few are few."""

import re

# Below four bits answers get visibly worse: by llama-quantize's own list (early 2024) the perplexity of LLaMA 7B, about
# 5.9, rises by 0.67 with Q2_K and by 0.25 with Q3_K_M. Fewer go behind until somebody scored what they answer.
CAREFUL_BITS = 4.0
_DIGIT = re.compile(r"(?:^|[^a-z0-9])(?:i?q|tq|nf|w|int|mxfp|nvfp|fp|f|bf)?(\d+)(?:bit|b)?(?:[^0-9]|$)", re.IGNORECASE)
# Scales of blocks come to about half a bit.
_SCALES = 0.5
_UNQUANTIZED = 16


def nominal_bits(quantization: str) -> float:
    """As "Q4_K_M" -> 4.5, "UD-Q2_K_XL" -> 2.5, "4bit" -> 4.5, "BF16" -> 16; 0 where the name says nothing."""
    found = _DIGIT.search(quantization)
    bits = int(found[1]) if found else 0
    if not 0 < bits <= 2 * _UNQUANTIZED:
        return 0.0
    return float(bits) if bits >= _UNQUANTIZED else bits + _SCALES
