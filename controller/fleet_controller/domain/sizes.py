"""Sizes as people read them: one unit everywhere, so that a refusal and the arithmetic under it can be compared."""


def gibibytes(size: int | None) -> str:
    """Bytes as GiB, small ones as MiB or KiB, or an unknown one as "?"."""
    if size is None:
        return "?"
    if abs(size) < 1 << 30:
        return f"{size / (1 << 20):.0f} MiB" if abs(size) >= 1 << 20 else f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 30):.1f} GiB"
