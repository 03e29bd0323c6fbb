"""A request as the engine sees it: its tokens, how far they are computed, and the blocks that hold them."""

from dataclasses import dataclass, field
from enum import Enum, auto

from multimodel_server.engine.messages import Embed, FinishReason, Generate, Sampling


class State(Enum):
    """Where a request stands; a preempted one waits again."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Request:
    """A prompt being continued, or only read; `token_ids` is the prompt and, after it, what was generated."""

    request_id: str
    token_ids: list[int]
    prompt_length: int
    sampling: Sampling
    priority: int = 0
    """The smaller goes first."""
    cache_salt: str = ""
    pools: bool = False
    """Asks for the embedding of its tokens, not for more of them."""
    prompt_logprobs: int | None = None
    arrival: int = 0
    """Number among all requests, in the order they came."""
    state: State = State.WAITING
    computed: int = 0
    """Leading tokens whose keys and values are in the cache."""
    planned: int = 0
    """Leading tokens that are computed or in a step that was handed out."""
    in_flight: int = 0
    """Steps that were handed out and compute some of its tokens."""
    pending: int = 0
    """Next tokens that those steps sample, and that are not known yet."""
    block_table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """The names of its full blocks' contents, as far as they were asked for."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted."""
    passed_over: int = 0
    """Steps since its last one, where only equal lengths go together."""
    sampling_state: object | None = None
    """What the sampler keeps between this request's tokens; no one else looks at it."""
    chosen_on_host: bool = field(init=False)
    """Whether the host must see what a step computed before more can be planned: the device alone cannot go on."""

    def __post_init__(self) -> None:
        self.chosen_on_host = self.pools or self.prompt_logprobs is not None or self.sampling.needs_host

    @classmethod
    def of(cls, message: Generate | Embed) -> "Request":
        """Return the request that a message asks for."""
        request_id, token_ids = message.request_id, list(message.prompt_ids)
        if isinstance(message, Embed):
            return cls(request_id, token_ids, len(token_ids), Sampling(max_tokens=0), pools=True)
        return cls(
            request_id,
            token_ids + message.output_ids,
            len(token_ids),
            message.sampling,
            priority=message.priority,
            cache_salt=message.cache_salt,
            prompt_logprobs=message.prompt_logprobs,
        )

    @property
    def rank(self) -> tuple[int, int]:
        """Its place among all requests: the smaller goes first and is preempted last."""
        return self.priority, self.arrival

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.token_ids) - self.prompt_length

    @property
    def total(self) -> int:
        """Most tokens it can come to have."""
        return self.prompt_length + self.sampling.max_tokens

    @property
    def remaining(self) -> int:
        """Tokens to plan before the next one can be sampled; 1 while decoding, 0 once its last one is on its way."""
        present = len(self.token_ids) + self.pending
        if self.pending and present - self.prompt_length >= self.sampling.max_tokens:
            return 0
        return present - self.planned

    @property
    def decodes(self) -> bool:
        """Whether its next token follows on one more; else some of a text is to be computed first."""
        return self.remaining == 1

    def accept(self, token: int) -> FinishReason | None:
        """Take the next token; return why it ends the request, if it does. A stop token is not kept."""
        if token in self.sampling.stop_token_ids:
            return "stop"
        self.token_ids.append(token)
        return "length" if self.generated >= self.sampling.max_tokens else None
