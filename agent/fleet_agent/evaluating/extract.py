"""The letter that an answer gives. Pure."""

import re
from collections.abc import Sequence


def extract_letter(text: str, patterns: Sequence[str], which: str) -> str | None:
    """The first group of the first pattern that is found anywhere in `text`; of several hits the "first" or the "last".

    None where no pattern hits: such an answer is wrong, and nothing is guessed.
    """
    for pattern in patterns:
        hits = re.findall(pattern, text)
        if hits:
            return str(hits[0] if which == "first" else hits[-1])
    return None
