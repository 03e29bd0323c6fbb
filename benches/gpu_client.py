"""A client of the model server that costs little: many streamed completions at once, counted as bytes come in.

Client libraries take longer over a chunk than a GPU over a token, so this one speaks just enough HTTP/1.1 itself.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

TAIL_BYTES = 4096
SECONDS = 300.0
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_EVENT = b"data: "


@dataclass(frozen=True)
class Round:
    """What came of requests that were sent at once."""

    seconds: float
    tokens: int
    first: list[float]
    """Seconds to each answer's first event."""

    @property
    def tokens_per_second(self) -> float:
        """All tokens over all the time."""
        return self.tokens / self.seconds


def ask_at_once(port: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> Round:
    """Ask for a completion of each prompt, all at once; raises RuntimeError where an answer is no whole one."""
    return asyncio.run(_ask(port, prompts, new_tokens))


async def _ask(port: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> Round:
    loop = asyncio.get_running_loop()
    requests = [_request(prompt, new_tokens) for prompt in prompts]
    streams = [_Stream(loop.create_future()) for _ in requests]
    for stream in streams:
        await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", port)  # type: ignore[misc]
    began = time.perf_counter()
    for stream, request in zip(streams, requests, strict=True):
        stream.send(request)
    async with asyncio.timeout(SECONDS):
        counts = [await stream.tokens for stream in streams]
    seconds = time.perf_counter() - began
    if set(counts) != {new_tokens}:
        raise RuntimeError(f"answers have {min(counts)} to {max(counts)} tokens; {new_tokens} were asked for")
    return Round(seconds, sum(counts), [stream.first_event - began for stream in streams])


def _request(prompt: Sequence[int], new_tokens: int) -> bytes:
    body = {
        "model": "default",
        "prompt": list(prompt),
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Stream(asyncio.Protocol):
    """One connection with one answer; its end tells how many tokens there were."""

    def __init__(self, tokens: asyncio.Future[int]) -> None:
        self.tokens = tokens
        self.first_event = 0.0
        self._transport: asyncio.Transport | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def send(self, request: bytes) -> None:
        """Send the request."""
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note when the first event came, and keep the end, where the usage stands."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if not self.first_event and _EVENT in self._tail:
            self.first_event = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        """Read the usage."""
        if self.tokens.done():
            return
        counted = _COMPLETION_TOKENS.search(self._tail)
        if counted is None:
            said = self._tail[-400:].decode(errors="replace")
            self.tokens.set_exception(RuntimeError(f"an answer broke off ({exc}); the last that came: {said}"))
        else:
            self.tokens.set_result(int(counted[1]))
