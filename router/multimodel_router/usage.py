"""How many tokens an answer says it cost, read from its last bytes alone; pure."""

import re

KEPT = 1024
"""Bytes of an answer's end that are kept for it."""

PIECES = 8
"""Pieces that are only collected, before they are cut to that."""

_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')


class Tail:
    """The end of an answer."""

    def __init__(self) -> None:
        self._last: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._last.append(data)
        if len(self._last) == PIECES:
            self._last = [b"".join(self._last)[-KEPT:]]

    def tokens(self) -> tuple[int, int]:
        """Return prompt and completion tokens, 0 where the answer does not say."""
        end = b"".join(self._last)[-KEPT:]
        return _last_number(_PROMPT, end), _last_number(_COMPLETION, end)


def _last_number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
