"""How large the pieces of a pull are, as fleet_agent/relay/manifest.py has it (docs/relay.md, Pieces)."""

LARGEST_PIECE_BYTES = 1 << 20
SMALLEST_PIECE_BYTES = 1 << 14
# Each hop holds a piece back until it has all of it, so N hops cost N pieces' time: 2 % of the whole at most.
PIECES_PER_HOP = 50


def piece_bytes_for(total_bytes: int, hosts: int) -> int:
    """A power of two, for that many bytes through a chain of that many hosts."""
    wanted = total_bytes // (PIECES_PER_HOP * max(1, hosts))
    size = LARGEST_PIECE_BYTES
    while size > wanted and size > SMALLEST_PIECE_BYTES:
        size >>= 1
    return size
