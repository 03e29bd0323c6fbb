"""A request as the engine sees it: its tokens, how far they are computed, and the blocks that hold them."""

from dataclasses import dataclass, field

from multimodel_server.engine.messages import FinishReason, Generate, Sampling


@dataclass(slots=True, eq=False)
class Request:
    """A prompt being continued; `token_ids` is the prompt and, after it, what was generated."""

    request_id: str
    token_ids: list[int]
    prompt_length: int
    sampling: Sampling
    computed: int = 0
    """Leading tokens whose keys and values are in the cache."""
    block_table: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, message: Generate) -> "Request":
        """Return the request that a message asks for."""
        return cls(message.request_id, list(message.prompt_ids), len(message.prompt_ids), message.sampling)

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.token_ids) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.computed

    def accept(self, token: int) -> FinishReason | None:
        """Take the next token; return why it ends the request, if it does. A stop token is not kept."""
        if token in self.sampling.stop_token_ids:
            return "stop"
        self.token_ids.append(token)
        return "length" if self.generated >= self.sampling.max_tokens else None
