"""Stop strings in a stream of text: nothing of one reaches the client, and nothing else is held for long."""


class StopFilter:
    """Passes text on until a stop string is complete.

    The string that is complete first ends the text, the longest of those that end there; so the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what may be sent now; sets `stopped` at the end of the first complete stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        start = self._first_match(text)
        if start is not None:
            self.stopped, self._held = True, ""
            return text[:start]
        kept = len(text) - self._partial_match(text)
        self._held = text[kept:]
        return text[:kept]

    def flush(self) -> str:
        """Return what is held at the end of the answer: it was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        """Return where the stop string that ends first begins."""
        starts = [(text.find(stop), len(stop)) for stop in self._stops]
        found = [(start + length, start) for start, length in starts if start >= 0]
        return min(found)[1] if found else None

    def _partial_match(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
