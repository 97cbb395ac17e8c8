"""How much a reader of a link may sleep for: never more than what it needs, however TLS was cut into records."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fleet_agent.relay.records import RECORD_CONTENT_BYTES, RECORD_EXTRA_BYTES, RECORD_HEAD_BYTES, Records


def stream_of(contents: list[int]) -> bytes:
    """Records with that much content each, the content's bytes being ones."""
    head = RECORD_EXTRA_BYTES - RECORD_HEAD_BYTES
    return b"".join(
        b"\x17\x03\x03" + (content + head).to_bytes(2, "big") + bytes(content + head) for content in contents
    )


@given(
    st.lists(st.integers(1, RECORD_CONTENT_BYTES), min_size=1, max_size=6),
    st.integers(0, 1 << 17),
    st.lists(st.integers(1, 40_000), max_size=5),
    st.integers(0, 5),
)
def test_no_more_is_waited_for_than_is_needed(contents: list[int], come: int, cuts: list[int], last: int) -> None:
    """`come` bytes of the stream are there, read in parts; wanted is what is not, up to the end of record `last`."""
    stream = stream_of(contents)
    records, at = Records(), 0
    for cut in [*cuts, len(stream)]:
        end = min(at + cut, come, len(stream))
        records.pass_over(memoryview(stream)[at:end])
        at = end
    ends = list(itertools.accumulate(content + RECORD_EXTRA_BYTES for content in contents))
    wanted = sum(content for content, end in zip(contents, ends, strict=True) if at < end <= ends[last % len(ends)])
    if wanted:
        assert 0 < records.missing(wanted) <= ends[last % len(ends)] - at


def test_full_records_are_waited_for_to_the_byte() -> None:
    records = Records()
    stream = stream_of([RECORD_CONTENT_BYTES] * 8)
    assert records.missing(1 << 17) == len(stream)
    for end in (1, 3, 5, 6, 5000, 16_405, 16_406, 16_409, 90_000):
        records = Records()
        records.pass_over(memoryview(stream)[:end])
        whole = end // (RECORD_CONTENT_BYTES + RECORD_EXTRA_BYTES)
        assert records.missing((1 << 17) - whole * RECORD_CONTENT_BYTES) == len(stream) - end
