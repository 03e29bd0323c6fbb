"""Chunks that go the short way: the client sees the same answer, and as many tokens count, however it was cut."""

import asyncio
import itertools
import socket
from collections.abc import Iterator
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodel_api.manifest import Model
from multimodel_api.resume import END_MARKER, MarkerReader, marker
from multimodel_router.endpoints import Lease
from multimodel_router.fleet import Endpoint
from multimodel_router.http1.reply import Reply
from multimodel_router.http1.request import Request
from multimodel_router.short_way import LONGEST, short_way
from multimodel_router.upstream_connection import Outgoing, Splice, UpstreamConnection, long_way

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
PLACE = Endpoint("192.0.2.1", 1)
EVENT = b'data: {"x": "a"}\n\n'


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and reads nothing."""

    def __init__(self) -> None:
        super().__init__({"socket": socket.socket()})
        self.written = bytearray()
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None: ...

    def close(self) -> None:
        self.get_extra_info("socket").close()


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    wires = Wire(), Wire()
    yield wires
    for wire in wires:
        wire.close()


def chunk(content: bytes, style: str = "%x") -> bytes:
    return (style % len(content)).encode() + b"\r\n" + content + b"\r\n"


def reply_on(wire: Wire) -> Reply:
    reply = Reply(Request("POST", "/", [], "", keep_alive=True, can_chunk=True), wire, ())
    reply.start(200, [])
    return reply


def lease() -> Lease:
    model = Model.model_validate({"name": "a", "plain": {"modelId": "x/a"}})
    return Lease(model, PLACE, set())


async def relayed(reads: list[bytes], *, shortly: bool) -> tuple[bytes, list[int], int]:
    """Return what a client reads of an answer that is read so, the tokens of its markers, and the bytes that count."""
    there, here = Wire(), Wire()
    markers = MarkerReader()
    connection = UpstreamConnection(lambda _: None)
    connection.connection_made(there)
    reply = reply_on(here)

    def write(content: bytes) -> None:
        if confirmed := markers.feed(content):
            reply.write(confirmed)

    try:
        splice = Splice(write, short_way(markers, reply, lease()) if shortly else long_way)
        connection.begin(Outgoing(PLACE, "POST", "/", [], at_head=lambda _: splice))
        for read in (HEAD, *reads):
            connection.data_received(read)
        await connection.answered()
        reply.end()
    finally:
        there.close()
        here.close()
    return body_of(here.written), markers.token_ids, reply.bytes_sent


def body_of(written: bytearray) -> bytes:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(bytes(written))
    content = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        content += bytes(event.data) if isinstance(event, h11.Data) else b""
    return content


TEXT = st.binary(max_size=40).map(lambda raw: b"data: " + raw.hex().encode() + b"\n\n") | st.just(
    b"data: : resume 7\n\n"
)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=3)
PIECE = st.builds(lambda text, ids: text + marker(ids), TEXT, TOKENS) | TEXT | TOKENS.map(marker)
CHUNK = st.builds(
    lambda pieces, style: chunk(b"".join(pieces), style),
    *(
        st.lists(PIECE, min_size=1, max_size=2),
        st.sampled_from(["%x"] * 5 + ["%X", "0%x", "%x;a=b"]),
    ),
)


@given(st.lists(CHUNK, max_size=8), st.lists(st.integers(0, 400), max_size=4), st.randoms())
def test_the_client_reads_the_same_however_an_answer_is_cut(chunks: list[bytes], cuts: list[int], random: Any) -> None:
    sent = b"".join(chunks)
    ends = [sum(map(len, chunks[: i + 1])) for i in range(len(chunks)) if random.random() < 0.8]
    places = sorted({0, len(sent), *ends, *(cut for cut in cuts if cut < len(sent))})
    reads = [sent[start:end] for start, end in itertools.pairwise(places)]
    reads.append(chunk(b"data: [DONE]\n\n" + END_MARKER) + b"0\r\n\r\n")
    shortly = asyncio.run(relayed(reads, shortly=True))
    assert shortly == asyncio.run(relayed(reads, shortly=False))


async def test_a_whole_chunk_with_its_marker_goes_the_short_way(wires: tuple[Wire, Wire]) -> None:
    wire, _ = wires
    markers, reply, place = MarkerReader(), reply_on(wire), lease()
    take = short_way(markers, reply, place)
    read = chunk(EVENT + marker([5, 99]))
    assert not take(read), "the head has to go first"
    reply.write(b": x\n\n")
    place.heard = False
    wire.written.clear()
    assert take(read)
    assert wire.written == chunk(EVENT)
    assert (markers.token_ids, reply.bytes_sent, place.heard) == ([5, 99], 5 + len(EVENT), True)


@pytest.mark.parametrize(
    "read",
    [
        chunk(EVENT),
        chunk(marker([1])),
        chunk(EVENT + marker([])),
        chunk(EVENT + b": resume7\n\n"),
        chunk(EVENT + END_MARKER),
        chunk(EVENT + marker([1]) + EVENT),
        chunk(EVENT + marker([1]) + EVENT + marker([2])),
        chunk(EVENT + marker([1]))[:-1],
        chunk(EVENT + marker([1])) + b"0\r\n\r\n",
        chunk(EVENT + marker([1]), "%X;x"),
        chunk(EVENT + marker([1]), "0%x"),
        b"1" + chunk(EVENT + marker([1])),
        chunk(EVENT * LONGEST + marker([1])),
        b"0\r\n\r\n",
        b"",
    ],
    ids=lambda read: repr(read[-24:]),
)
async def test_any_other_read_goes_the_long_way(wires: tuple[Wire, Wire], read: bytes) -> None:
    wire, _ = wires
    reply = reply_on(wire)
    reply.write(b": x\n\n")
    before = bytes(wire.written)
    assert not short_way(MarkerReader(), reply, lease())(read)
    assert wire.written == before


async def test_nothing_goes_the_short_way_past_what_is_held_back_or_to_a_client_that_left(
    wires: tuple[Wire, Wire],
) -> None:
    wire, _ = wires
    markers, reply = MarkerReader(), reply_on(wire)
    reply.write(b": x\n\n")
    take = short_way(markers, reply, lease())
    markers.feed(EVENT)
    assert not take(chunk(EVENT + marker([1])))
    markers.feed(marker([1]))
    reply.flows = False
    assert not take(chunk(EVENT + marker([1])))
