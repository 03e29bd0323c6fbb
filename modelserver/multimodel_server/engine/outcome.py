"""What a step brought for one request: the runner says it, the scheduler acts on it."""

from typing import NamedTuple

from multimodel_server.engine.messages import TokenLogprobs


class Outcome(NamedTuple):
    """The next token of a request whose tokens are all computed, or its embedding, or why there is neither."""

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    embedding: list[float] | None = None
    error: str | None = None
    """Ends this request and no other."""
    invalid: bool = False
    """Whether the request is to blame for the error."""
