"""How much of a prompt is computed beside running answers, so that a long prompt does not hold up their next token.

Pure: it is told how long steps took, and never looks at a clock.
"""

SLOWDOWN = 2.2
"""How much longer than without prompts a step may take: the time between two tokens of a running answer."""
LEAST = 16
"""A prompt advances by as much in every step, whatever it costs (where `least` says no other)."""
_SMOOTHING = 0.2


class Pace:
    """Learns from steps what a decoding step and a prompt token cost, in seconds."""

    def __init__(self, first_allowance: int, least: int = LEAST) -> None:
        self._first_allowance = first_allowance
        self._least = least
        self._decode_seconds: float | None = None
        self._seconds_per_prompt_token: float | None = None

    @property
    def allowance(self) -> int:
        """Prompt tokens of the next step, if anything decodes in it."""
        if self._decode_seconds is None or self._seconds_per_prompt_token is None:
            return self._first_allowance
        spare = (SLOWDOWN - 1) * self._decode_seconds
        return max(self._least, int(spare / self._seconds_per_prompt_token))

    def observe(self, decoded: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step in which so many requests decoded beside so many tokens of prompts."""
        if decoded and not prompt_tokens:
            self._decode_seconds = _smoothed(self._decode_seconds, seconds)
        elif decoded and self._decode_seconds is not None:
            cost = max(seconds - self._decode_seconds, 1e-6) / prompt_tokens
            self._seconds_per_prompt_token = _smoothed(self._seconds_per_prompt_token, cost)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)
