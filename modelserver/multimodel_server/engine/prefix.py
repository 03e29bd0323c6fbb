"""Prefix sharing: a full block is named by a digest of its tokens and of all that came before, and found by it.

A digest is 128 bits of BLAKE2b under a key that is drawn anew for each engine: nobody can foresee one, or make two
texts meet in one. What else tells two texts apart is hashed under a personalisation of its own kind, so that kinds
never collide: today that is the salt, which starts the chain.
"""

import secrets
from array import array
from collections import deque
from hashlib import blake2b
from itertools import chain, takewhile

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.request import Request

DIGEST_BYTES = 16


class PrefixCache:
    """Finds and names the blocks of requests by content; a disabled one finds and names none."""

    def __init__(self, blocks: BlockPool, block_size: int, *, enabled: bool = True) -> None:
        self.lookups = 0
        """Prompt tokens that were looked for."""
        self.hits = 0
        """Prompt tokens that were found."""
        self._blocks = blocks
        self._block_size = block_size
        self._enabled = enabled
        self._key = secrets.token_bytes(32)

    def find(self, request: Request) -> list[int]:
        """Return the blocks that hold the beginning of a request's tokens; one token at least is left to compute."""
        return self._blocks.find(self._wanted(request))

    def common_tokens(self, request: Request, other: Request) -> int:
        """Return how many tokens `find` could find of a request if another one were computed."""
        wanted = self._wanted(request)
        theirs = self._digests(other, min(len(wanted), len(other.token_ids) // self._block_size))
        pairs = zip(wanted, theirs, strict=False)
        return self._block_size * sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def note_admission(self, request: Request, found_tokens: int) -> None:
        """Count what a request found; a preempted one that comes back and finds its own blocks does not count."""
        if request.cached_tokens is not None:
            return
        request.cached_tokens = found_tokens
        if self._enabled:
            self.lookups += len(request.token_ids)
            self.hits += found_tokens

    def computed(self, request: Request, start: int) -> None:
        """Hear that a request's tokens from `start` on are computed."""
        self._publish(request, start)

    def finished(self, request: Request) -> None:
        """Hear that a request came to its end, its blocks not yet given back."""

    def clear(self) -> None:
        """Forget all that was computed: the memory no longer holds it."""
        self._blocks.forget_everything()

    def _wanted(self, request: Request) -> list[bytes]:
        """Return the digests of the blocks that a request may share: all but its last token's."""
        if not self._enabled or request.prompt_logprobs is not None:
            return []
        return self._digests(request, (len(request.token_ids) - 1) // self._block_size)

    def _publish(self, request: Request, start: int) -> None:
        """Let others find the full blocks that a request has computed, from the one that holds the token `start` on."""
        first, end = start // self._block_size, request.computed // self._block_size
        if self._enabled and first < end:
            digests = self._digests(request, end)
            for block, digest in zip(request.block_table[first:end], digests[first:], strict=True):
                self._blocks.name(block, digest)

    def _digests(self, request: Request, count: int) -> list[bytes]:
        """Return the digests of a request's first `count` blocks, hashing only what was not hashed before."""
        digests = request.digests
        for index in range(len(digests), count):
            parent = digests[-1] if digests else self._digest(b"cache_salt", request.cache_salt.encode())
            tokens = request.token_ids[index * self._block_size : (index + 1) * self._block_size]
            digests.append(self._digest(b"block", parent + array("I", tokens).tobytes()))
        return digests[:count]

    def _digest(self, kind: bytes, content: bytes) -> bytes:
        return blake2b(content, digest_size=DIGEST_BYTES, key=self._key, person=kind).digest()


class KeptTexts(PrefixCache):
    """Keeps the last so many texts that came to their end, and finds what new ones have in common with them."""

    def __init__(self, blocks: BlockPool, block_size: int, *, count: int) -> None:
        super().__init__(blocks, block_size, enabled=count > 0)
        self._count = count
        self._kept: deque[list[bytes]] = deque()

    def computed(self, request: Request, start: int) -> None:
        """Hear that a request's tokens from `start` on are computed: only whole texts are kept."""

    def finished(self, request: Request) -> None:
        """Keep a text, and forget of the oldest beyond the count what no other kept one has in common with it."""
        self._publish(request, 0)
        self._kept.append(self._digests(request, request.computed // self._block_size))
        if len(self._kept) > self._count:
            oldest = self._kept.popleft()
            still_kept = set(chain.from_iterable(self._kept))
            self._blocks.forget(digest for digest in oldest if digest not in still_kept)

    def clear(self) -> None:
        """Forget all that was computed: the memory no longer holds it."""
        super().clear()
        self._kept.clear()
