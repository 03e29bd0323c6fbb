"""Calls to routers by a client that is strict: a connection that cannot be made is tried elsewhere, nothing else is."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """What came back; `began` and `ended` in seconds since the epoch."""

    began: float
    url: str = ""
    """The router that took the connection."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    """Whether the answer's end came."""
    ended: float = 0.0
    trouble: str = ""
    """How the connection ended before the answer's end."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    @property
    def text(self) -> str:
        """The words of a stream, or of a JSON answer."""
        if b"data: " not in self.body:
            document = json.loads(self.body)
            return str(document["choices"][0]["message"]["content"]) if "choices" in document else ""
        events = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        chunks = [chunk for chunk in map(json.loads, events) if "choices" in chunk]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

    @property
    def good(self) -> bool:
        """Whether the client got all that it asked for."""
        ended = b"data: " not in self.body or b"data: [DONE]" in self.body
        return self.status == 200 and self.whole and ended and b'"error"' not in self.body

    def __str__(self) -> str:
        return f"{self.url} {self.status} after {self.seconds:.2f} s: {self.trouble or self.body[-200:]!r}"


async def call(urls: Sequence[str], document: dict[str, Any], path: str = CHAT) -> Answer:
    """Post a document to the first router that takes the connection, and read its answer to the end."""
    answer = Answer(time.time())
    try:
        reader, writer = await _connect(urls, answer)
    except OSError as error:
        answer.trouble, answer.ended = f"no connection: {error}", time.time()
        return answer
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: router\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    try:
        writer.write(head.encode() + body)
        await _read(reader, answer)
    except (OSError, asyncio.IncompleteReadError) as error:
        answer.trouble = repr(error)
    finally:
        answer.ended = time.time()
        writer.transport.abort()
    return answer


async def _connect(urls: Sequence[str], answer: Answer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    refused: OSError = ConnectionRefusedError("no router was given")
    for url in urls:
        parts = urlsplit(url)
        try:
            connection = await asyncio.open_connection(parts.hostname, parts.port)
        except (ConnectionRefusedError, ConnectionResetError) as error:  # reset before it was made
            refused = error
        else:
            answer.url = url
            return connection
    raise refused


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    answer.status = int(first.split(" ")[1])
    answer.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" in answer.headers:
        answer.body = await reader.readexactly(int(answer.headers["content-length"]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer.body += (await reader.readexactly(size + 2))[:-2]
    answer.whole = True


class Crowd:
    """Clients that make one call after the other until they `leave`, each at its own router first."""

    def __init__(
        self, urls: Sequence[str], size: int, document: dict[str, Any], spread: float = 2.0, pause: float = 0.0
    ) -> None:
        """`spread` is over how many seconds they come, so that some call is at each of its points at any time.

        `pause` is for how many seconds each of them rests between two calls.
        """
        self.answers: list[Answer] = []
        self._document = document
        self._pause = pause
        self._leaving = False
        orders = [[*urls[first:], *urls[:first]] for first in range(len(urls))]
        self._clients = [
            asyncio.create_task(self._call(orders[number % len(urls)], spread * number / size))
            for number in range(size)
        ]

    async def _call(self, urls: Sequence[str], later: float) -> None:
        await asyncio.sleep(later)
        while not self._leaving:
            self.answers.append(await call(urls, self._document))
            await asyncio.sleep(self._pause)

    async def leave(self) -> list[Answer]:
        """Let the running calls be the last, and return the answers to all."""
        self._leaving = True
        await asyncio.gather(*self._clients)
        return self.answers
