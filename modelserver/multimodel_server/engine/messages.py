"""What the HTTP process and the engine process say to each other, as msgpack over a pipe."""

from typing import Literal

import msgspec

from multimodel_api.progress import LoadPhase

FinishReason = Literal["stop", "length"]


class Dry(msgspec.Struct, frozen=True):
    """Don't-repeat-yourself penalty: `multiplier * base ** (length - allowed_length)` for a repeat of that length."""

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    sequence_breaker_ids: frozenset[int] = frozenset()


class Grammar(msgspec.Struct, frozen=True):
    """What the whole answer must be: a JSON schema, a regular expression or a Lark grammar, as text."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str


class Sampling(msgspec.Struct, frozen=True):
    """How to choose a request's tokens; `temperature` 0 is greedy, `top_k` 0 keeps all tokens."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    dry: Dry | None = None
    logit_bias: dict[int, float] = {}
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    grammar: Grammar | None = None
    logprobs: int | None = None
    """Alternatives to report beside each token's own log-probability; None reports nothing."""

    @property
    def penalises(self) -> bool:
        """Whether tokens that were there before are less likely, or likelier, to come again."""
        counted = self.presence_penalty != 0 or self.frequency_penalty != 0
        return counted or self.repetition_penalty != 1 or self.dry is not None

    @property
    def needs_host(self) -> bool:
        """Whether choosing takes more than the model's logits and a random number, or tells more than the token."""
        return self.penalises or bool(self.logit_bias) or self.grammar is not None or self.logprobs is not None


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start a request. The prompt is never empty and fits the limits that `Ready` gave."""

    request_id: str
    prompt_ids: list[int]
    sampling: Sampling
    priority: int = 0
    """The smaller goes first; within one class, who came first."""
    cache_salt: str = ""
    """Only requests with the same salt share cached prefixes."""
    prompt_logprobs: int | None = None
    """As `Sampling.logprobs`, for the prompt's tokens; such a request finds no cached prefix."""
    output_ids: list[int] = []
    """The answer's first tokens, where they are known already; `Tokens` tell only of those that follow."""


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Compute the prompt's embedding: the normalised last hidden state of its last token."""

    request_id: str
    prompt_ids: list[int]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a request; nothing more is said of it. Unknown ids are ignored."""

    request_id: str


class Sleep(msgspec.Struct, frozen=True, tag=True):
    """Give the device's memory back as soon as no request is left; `Slept` tells when."""

    keep_weights: bool = True
    """Whether the host may keep the weights; else they are read from their files again."""


class Wake(msgspec.Struct, frozen=True, tag=True):
    """Take the memory again, which any request does too; `Woken` tells when."""


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


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The log-probability of a token by the raw logits, and of the likeliest ones, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Tokens(msgspec.Struct, frozen=True):
    """New tokens of a request; `finish_reason` ends it. A stop token is never among `token_ids`."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One for each of `token_ids`, where asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token, where asked for: one for each prompt token but the first."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; said with the first token."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """What one step brought, for every request that gained by it: one message however many there are."""

    tokens: list[Tokens]
    queue_seconds: list[float] = []
    """How long each request waited that was computed for the first time."""


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """The embedding that `Embed` asked for: unit length."""

    request_id: str
    vector: list[float]


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """A request ended by an error of its own; `invalid` if the request was wrong, else the engine was."""

    request_id: str
    message: str
    invalid: bool = False


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The loop turns: sent at least once a second, while idle too, and whenever work begins or ends."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    preemptions: int
    prefix_lookups: int = 0
    """Prompt tokens looked for in the prefix cache since the engine started, as the next two."""
    prefix_hits: int = 0
    prefix_evictions: int = 0
    """Blocks."""
    late_compilations: int = 0
    """Kernels that requests had to wait for."""


class Slept(msgspec.Struct, frozen=True, tag=True):
    """The device's memory is given back."""


class Woken(msgspec.Struct, frozen=True, tag=True):
    """The memory is there again, with the weights, and without any cached prefix."""


ToEngine = Generate | Embed | Cancel | Sleep | Wake | Stop
FromEngine = Loading | Ready | LoadFailed | Step | Embedded | RequestFailed | Heartbeat | Slept | Woken

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
