"""Log-probabilities by the raw logits: before bias, penalties, grammar and temperature.

Only what is reported is kept: never a second [rows, vocabulary] of log-probabilities, and of a prompt's logits never
more than `ROWS_AT_ONCE` rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from multimodel_server.engine.messages import TokenLogprobs

ROWS_AT_ONCE = 128
"""Prompt rows whose logits are held at a time: 80 MB of float32 at a vocabulary of 150,000."""


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    """Return, for each row of [rows, vocabulary] float32, the log-probabilities of its token and its likeliest ones."""
    norms = logits.logsumexp(dim=-1, keepdim=True)
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None]) - norms
    best, best_ids = logits.topk(min(max(tops), logits.shape[1]), dim=-1)
    ranked = [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best_ids.tolist(), (best - norms).tolist(), strict=True)
    ]
    rows = zip(token_ids, chosen[:, 0].tolist(), ranked, tops, strict=True)
    return [TokenLogprobs(token, logprob, best[:top]) for token, logprob, best, top in rows]


@dataclass(slots=True)
class PromptLogprobs:
    """The log-probabilities of a prompt's tokens but the first, collected chunk by chunk."""

    top: int
    entries: list[TokenLogprobs] = field(default_factory=list)

    def add(
        self, hidden: torch.Tensor, start: int, prompt: Sequence[int], logits: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Take the hidden states [rows, hidden_size] of the prompt's tokens from `start` on, known ones again or not.

        The row of a token tells about the next one; what follows the prompt's last token is no part of it.
        """
        end = min(start + len(hidden), len(prompt) - 1)
        for first in range(len(self.entries), end, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, end)
            rows = logits(hidden[first - start : last - start])
            self.entries += token_logprobs(rows, prompt[first + 1 : last + 1], [self.top] * len(rows))
