"""How a stream of TLS is cut into records, which their heads say in clear."""

RECORD_HEAD_BYTES = 5
# RFC 8446, 5.2: head, content type and AEAD tag beside each record's at most 2^14 bytes of content.
RECORD_EXTRA_BYTES = RECORD_HEAD_BYTES + 1 + 16
RECORD_CONTENT_BYTES = 1 << 14


class Records:
    """Where in the stream of TLS records we are: how much of the last one is still to come."""

    def __init__(self) -> None:
        self._head = b""
        self._length = 0
        self._left = 0

    @property
    def begun_bytes(self) -> int:
        """Of the last record, what has come of it while it is not whole."""
        return RECORD_HEAD_BYTES + self._length - self._left if self._left else len(self._head)

    def pass_over(self, data: memoryview) -> None:
        at, end = 0, len(data)
        while True:
            at += self._left
            if at >= end:
                self._left = at - end
                return
            need = RECORD_HEAD_BYTES - len(self._head)
            self._head += data[at : at + need]
            at += need
            if at > end:
                self._left = 0
                return
            self._length = self._left = self._head[3] << 8 | self._head[4]
            self._head = b""

    def missing(self, wanted: int) -> int:
        """Before `wanted` bytes more can be decrypted, at least so many must come, when all that came has been.

        Never more than that, or a piece would lie there complete and wait for what comes after it.
        """
        if self._left:
            wanted -= self._length - (RECORD_EXTRA_BYTES - RECORD_HEAD_BYTES)
        if wanted <= 0:
            return self._left
        records = -(-wanted // RECORD_CONTENT_BYTES)
        return self._left + wanted + records * RECORD_EXTRA_BYTES - len(self._head)
