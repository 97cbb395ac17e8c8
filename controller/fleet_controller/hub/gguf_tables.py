"""The table of tensors of a GGUF file, found by that of another file of the same network.

The quantizations of one repository have the same keys and vocabulary before their tables, but for a few hundred bytes
(the file's type, what its importance matrix was made of). So a table lies about where the other file has its own, and
is recognised by the names and dimensions of all its tensors.
"""

import struct
from dataclasses import replace

from fleet_controller.hub import gguf
from fleet_controller.hub.errors import GgufError
from fleet_controller.hub.gguf import GgufHeader, GgufTensor

# How far tables of one network lie apart, generously.
SLACK_BYTES = 64 << 10


def header_like(known: GgufHeader, url: str, token: str | None) -> GgufHeader | None:
    """The header of the file at `url` with the keys of `known`, from its table alone; None where it is another network.

    Blocking. Raises HubError and its kinds.
    """
    start = max(known.tensors_at - SLACK_BYTES, 0)
    data = gguf.fetch(url, token, start, known.header_bytes + SLACK_BYTES - start)
    tensors = table_in(data, known)
    return None if tensors is None else replace(known, tensors=tensors)


def table_in(data: bytes, known: GgufHeader) -> tuple[GgufTensor, ...] | None:
    """The table of `known`'s tensors, of whatever types, somewhere in these bytes."""
    if not known.tensors:
        return None
    name = known.tensors[0].name.encode()
    mark = struct.pack("<Q", len(name)) + name
    wanted = {(tensor.name, tensor.dimensions) for tensor in known.tensors}
    at = data.find(mark)
    while at >= 0:
        try:
            tensors = gguf.parse_tensors(data[at:], known.tensor_count)
        except GgufError:
            tensors = ()
        if {(tensor.name, tensor.dimensions) for tensor in tensors} == wanted:
            return tensors
        at = data.find(mark, at + 1)
    return None
