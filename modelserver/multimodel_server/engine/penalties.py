"""Penalties for tokens that were there before, by counts and positions that grow with a request's answer."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from multimodel_server.engine.messages import Dry, Sampling

LONGEST_REPEAT = 50
"""Longer repeats are penalised like this one: the penalty grows exponentially."""


class Penalties:
    """The penalties of one request; [vocabulary] float32 rows are changed in place."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.followed = 0
        """Tokens of the answer that were taken so far."""
        self._sampling = sampling
        self._seen = SeenTokens(prompt)
        self._dry = None if sampling.dry is None else Repeats(sampling.dry, prompt)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take the next tokens of the answer."""
        for token in tokens:
            self._seen.count(token)
            if self._dry is not None:
                self._dry.append(token)
        self.followed += len(tokens)

    def apply(self, logits: torch.Tensor) -> None:
        """Penalise repetition (prompt and answer), then presence and frequency (answer), then repeated sequences."""
        sampling = self._sampling
        ids, counts = self._seen.on(logits.device)
        scores = logits[ids]
        penalty = sampling.repetition_penalty
        scores = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
        logits[ids] = scores
        if self._dry is not None:
            ids, penalties = self._dry.on(logits.device)
            logits[ids] -= penalties


class SeenTokens:
    """The distinct tokens of prompt and answer, and how often each stands in the answer."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._slots: dict[int, int] = {}
        self._ids = _Growing()
        self._counts = _Growing()
        for token in prompt:
            self._slot(token)

    def count(self, token: int) -> None:
        """Take the answer's next token."""
        slot = self._slot(token)
        self._counts.values[slot] += 1

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and counts, both [distinct] int64."""
        return torch.from_numpy(self._ids.values).to(device), torch.from_numpy(self._counts.values).to(device)

    def _slot(self, token: int) -> int:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids.values):
            self._ids.append(token)
            self._counts.append(0)
        return slot


class Repeats:
    """The DRY penalty: for each token, the longest run at the text's end that it followed before.

    A run of `length` tokens costs `multiplier * base ** (length - allowed_length)`, shorter ones nothing. Runs reach
    neither over nor into a sequence breaker. Defined in github.com/oobabooga/text-generation-webui, pull request 5677.
    """

    def __init__(self, dry: Dry, prompt: Sequence[int]) -> None:
        self._dry = dry
        self._text = _Growing()
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        """Take the text's next token."""
        self._text.append(token)

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens to penalise, [n] int64, and by how much, [n] float32."""
        longest = self.longest()
        lengths = np.array(list(longest.values()), dtype=np.float64)
        excess = lengths - self._dry.allowed_length
        penalties = np.where(excess >= 0, self._dry.multiplier * self._dry.base**excess, 0.0)
        ids = torch.tensor(list(longest), dtype=torch.int64, device=device)
        return ids, torch.from_numpy(penalties).float().to(device)

    def longest(self) -> dict[int, int]:
        """Return the length of the longest run before each token that would go on with one."""
        text, breakers = self._text.values, self._dry.sequence_breaker_ids
        if int(text[-1]) in breakers:
            return {}
        ends = np.flatnonzero(text[:-1] == text[-1])
        lengths = np.ones_like(ends)
        growing = np.arange(len(ends))
        for length in range(1, LONGEST_REPEAT):
            growing = growing[ends[growing] >= length]
            if not len(growing) or int(text[-1 - length]) in breakers:
                break
            growing = growing[text[ends[growing] - length] == text[-1 - length]]
            lengths[growing] = length + 1
        longest: dict[int, int] = {}
        for token, length in zip(text[ends + 1].tolist(), lengths.tolist(), strict=True):
            if token not in breakers:
                longest[token] = max(length, longest.get(token, 0))
        return longest


class _Growing:
    """An int64 array that appends in constant time; `values` is what it holds, not copied."""

    def __init__(self) -> None:
        self._buffer: NDArray[np.int64] = np.empty(64, dtype=np.int64)
        self._size = 0

    @property
    def values(self) -> NDArray[np.int64]:
        return self._buffer[: self._size]

    def append(self, value: int) -> None:
        if self._size == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self._size] = value
        self._size += 1
