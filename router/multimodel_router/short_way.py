"""The short way of a chunk: one that was read whole, alone and with its marker goes to the client in one function.

Nearly every chunk of nearly every stream is such a one; all others take the long way, through parser, marker reader and
reply. How long a chunk takes is what those behind it wait, so nothing is done here that need not be done.
"""

from multimodel_api.resume import MarkerReader
from multimodel_router.endpoints import Lease
from multimodel_router.http1.reply import Reply
from multimodel_router.upstream_connection import ShortWay

LONGEST = 4096
"""Bytes of a chunk from which on the long way matters little."""

_MARKER = b"\n: resume"
_END = b"\n\n\r\n"
_SPACE = 0x20


def _opening(size: int) -> bytes:
    """Return what a chunk of `size` bytes in all begins with (RFC 9112, 7.1); what none does, where there is none."""
    for digits in range(1, len(f"{LONGEST:x}") + 1):
        content = size - digits - 4
        if content > 0 and len(f"{content:x}") == digits:
            return b"%x\r\n" % content
    return b"\n"


_OPENINGS = tuple(_opening(size) for size in range(LONGEST))


def short_way(markers: MarkerReader, reply: Reply, lease: Lease) -> ShortWay:
    """Return what takes a read that may go the short way, and says whether it did.

    It may be asked only where a chunk may begin. An answer's last chunks never go this way, as no token made them.
    """
    token_ids, write = markers.written_ids, reply.transport.write

    def take(read: bytes) -> bool:
        size = len(read)
        start = read.find(_MARKER)
        said = read[start + len(_MARKER) : -len(_END)]
        if size >= LONGEST or read[-4:] != _END or not said.replace(b" ", b"").isdigit() or said[0] != _SPACE:
            return False
        opening = _OPENINGS[size]
        if start < len(opening) or not read.startswith(opening) or markers.held or not reply.flows:
            return False
        token_ids.extend(said)
        lease.heard = True
        content = read[len(opening) : start + 1]
        reply.bytes_sent += len(content)
        write(b"%x\r\n%b\r\n" % (len(content), content))
        return True

    return take
