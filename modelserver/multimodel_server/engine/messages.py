"""What the HTTP process and the engine process say to each other, as msgpack over a pipe."""

from typing import Literal

import msgspec

from multimodel_api.progress import LoadPhase

FinishReason = Literal["stop", "length"]


class Sampling(msgspec.Struct, frozen=True):
    """How to choose a request's tokens; `temperature` 0 is greedy, `top_k` 0 keeps all tokens."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start a request. The prompt is never empty and fits the limits that `Ready` gave."""

    request_id: str
    prompt_ids: list[int]
    sampling: Sampling


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a request; nothing more is said of it. Unknown ids are ignored."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the process."""


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Bytes of weights read so far."""

    phase: LoadPhase
    bytes_done: int
    bytes_total: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The weights are in. A request fits if prompt plus max_tokens is at most `max_request_tokens`."""

    max_request_tokens: int
    kv_blocks: int
    block_size: int


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be loaded; the process ends. `reason` is a `failures.FailureReason`."""

    reason: str
    message: str


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """New tokens of a request; `finish_reason` ends it. A stop token is never among `token_ids`."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """A request ended by an error of its own."""

    request_id: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The loop turns: sent at least once a second, while idle too, and at least once a step."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    preemptions: int


ToEngine = Generate | Cancel | Stop
FromEngine = Loading | Ready | LoadFailed | Tokens | RequestFailed | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """Return a message as the bytes of one pipe frame."""
    return _encoder.encode(message)


def decode_to_engine(frame: bytes) -> ToEngine:
    """Return the message in a frame sent to the engine; raises `msgspec.DecodeError`."""
    return _to_engine.decode(frame)


def decode_from_engine(frame: bytes) -> FromEngine:
    """Return the message in a frame sent by the engine; raises `msgspec.DecodeError`."""
    return _from_engine.decode(frame)
