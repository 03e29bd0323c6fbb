"""What makes an answer the same on every server, beside the request: its names, and what its tokens follow from."""

import base64
import secrets
import time
from array import array
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """How the answers to one request are named, and when they were begun."""

    number: str
    """All ids are made of it."""
    created: int
    """Seconds since 1970."""

    @classmethod
    def new(cls) -> "Identity":
        """Return an identity that no other answer has."""
        return cls(secrets.token_hex(12), int(time.time()))


class AnswerState(msgspec.Struct, frozen=True, array_like=True):
    """What another server needs, beside the request and the tokens so far, to go on with an answer."""

    number: str
    created: int
    seed: int
    max_tokens: int
    cached_tokens: int
    prompt: bytes
    """The digest of the prompt's tokens: another tokenizer or template makes another answer."""

    @property
    def identity(self) -> Identity:
        """The answer's identity."""
        return Identity(self.number, self.created)

    def encode(self) -> str:
        """Return the state as a header may hold it."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode()

    @classmethod
    def decode(cls, text: str) -> "AnswerState":
        """Return the state that a text holds; raises ValueError."""
        return msgspec.msgpack.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=cls)


def prompt_digest(prompt_ids: list[int]) -> bytes:
    """Return what tells one prompt from another."""
    return blake2b(array("I", prompt_ids).tobytes(), digest_size=_DIGEST_BYTES).digest()
