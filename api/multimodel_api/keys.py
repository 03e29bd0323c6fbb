"""API keys: how one looks, and the entry that stands for it in a Secret or a folder.

An entry's name is the key's name. It holds a digest, never the key: whoever reads the Secret can call nothing.
"""

import hashlib
import secrets
from enum import StrEnum
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

KEY_PREFIX = "sk-mm-"
ANONYMOUS = "anonymous"
"""The caller's name where no keys are asked for; no key may have it."""
ANY_MODEL = "*"
MAX_KEY_NAME = 253
KEY_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""What a Secret's entry may be called, without the leading dot that the kubelet's own files have."""

_KEY_BYTES = 32
_DIGEST = "sha256:"


class Action(StrEnum):
    """What a key may be used for."""

    INFER = "infer"
    MANAGE = "manage"


class KeyEntry(BaseModel):
    """What is known of a key: its digest, the models it may use (`*` for all, else API ids) and for what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    models: Annotated[list[str], Field(min_length=1)]
    actions: Annotated[list[Action], Field(min_length=1)]

    @cached_property
    def digest(self) -> bytes:
        """The 32 bytes to compare with `digest` of a key that somebody presents."""
        return bytes.fromhex(self.hash.removeprefix(_DIGEST))

    def covers(self, api_id: str) -> bool:
        """Say whether the key may use the model of this API id."""
        return ANY_MODEL in self.models or api_id in self.models


def new_key() -> str:
    """Return a key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def key_digest(key: bytes) -> bytes:
    """Return a key's SHA-256: enough without salt or stretching, as a key is random and no password."""
    return hashlib.sha256(key).digest()


def key_hash(key: str) -> str:
    """Return what an entry says of a key."""
    return _DIGEST + key_digest(key.encode()).hex()
