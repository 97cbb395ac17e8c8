"""Sizes as people write them."""

import re

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")


def parse_bytes(value: object) -> int:
    """Bytes of 2000000000, "2 GB" (10^9 each) or "1.5 GiB" (2^30 each). Raises ValueError for anything else."""
    match = _SIZE.match(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    factor = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"must be a size like '2 GB' or '1.5 GiB', or a number of bytes, not {value!r}")
    return int(float(match.group(1)) * factor) if "." in match.group(1) else int(match.group(1)) * factor
