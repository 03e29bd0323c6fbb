"""What the router reads of a request's body: the model, whether a stream is wanted, and how a conversation begins."""

import json
from typing import Any

import msgspec
import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError

from multimodel_api import errors

PREFIX_BYTES = 2048
"""How much of a conversation's beginning decides where it goes."""

_OPENINGS = ("system", "instructions", "messages", "prompt", "input")


class Addressed(BaseModel):
    """The fields of a request that the router acts on."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    stream: bool | None = None


class _Glance(msgspec.Struct):
    """The same, read in a fraction of the time, but without words for what is wrong with it."""

    model: str | None = None
    stream: bool | None = None


_glance_at = msgspec.json.Decoder(_Glance).decode


def read_addressed(body: bytes) -> Addressed | _Glance:
    """Return what a body says of where it goes; the rest of it is for the model server to judge.

    Raises:
        ApiError: the 400 for a body that is no JSON object or whose `model` or `stream` has the wrong type.
    """
    try:
        return _glance_at(body)
    except (msgspec.DecodeError, RecursionError):
        return _read_with_words(body)


def _read_with_words(body: bytes) -> Addressed:
    try:
        return Addressed.model_validate_json(body)
    except ValidationError as error:
        raise errors.from_validation(error) from error


def opening(body: bytes) -> bytes:
    """Return what is common to the requests of one conversation: its first words, cut at a fixed length.

    A conversation's later requests repeat the first ones, so that they meet the server that has them cached. A body
    that is no JSON opens nothing; a model server says what is wrong with it.
    """
    try:
        document: dict[str, Any] = pydantic_core.from_json(body)
    except ValueError:
        return b""
    first = {field: _beginning(document[field]) for field in _OPENINGS if field in document}
    return json.dumps(first, sort_keys=True).encode()[:PREFIX_BYTES]


def _beginning(value: Any) -> Any:
    """Return a list of messages up to the first that a user says: what every later request repeats."""
    if not isinstance(value, list):
        return value
    by_user = (i for i, entry in enumerate(value) if isinstance(entry, dict) and entry.get("role") == "user")
    return value[: next(by_user, 0) + 1]
