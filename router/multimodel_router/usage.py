"""How many tokens an answer says it cost, read from its last bytes alone; pure."""

import re
from collections import deque

PIECES = 8
"""Pieces of an answer's end that are kept for it, as they came."""

_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')


class Tail:
    """The end of an answer."""

    __slots__ = ("_last", "feed")

    def __init__(self) -> None:
        self._last: deque[bytes] = deque(maxlen=PIECES)
        self.feed = self._last.append
        """Takes the next piece; every one of every stream, so nothing stands between."""

    def tokens(self) -> tuple[int, int]:
        """Return prompt and completion tokens, 0 where the answer does not say."""
        end = b"".join(self._last)
        return _last_number(_PROMPT, end), _last_number(_COMPLETION, end)


def _last_number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
