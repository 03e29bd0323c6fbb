"""Stop strings in a stream of text: nothing of one reaches the client, and nothing else is held for long."""


class StopFilter:
    """Passes text on until a stop string is complete.

    The string that is complete first ends the text, the longest of those that end there; so the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped_by: str | None = None
        self.withheld = 0
        """Characters at the end of the text so far that have not been passed on."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete."""
        return self.stopped_by is not None

    def feed(self, text: str) -> str:
        """Return what may be sent now; sets `stopped_by` at the end of the first complete stop string."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            start, self.stopped_by = match
            self._held, self.withheld = "", len(text) - start
            return text[:start]
        self.withheld = partial_end(text, self._stops)
        kept = len(text) - self.withheld
        self._held = text[kept:]
        return text[:kept]

    def flush(self) -> str:
        """Return what is held at the end of the answer: it was no stop string after all."""
        held, self._held, self.withheld = self._held, "", 0
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Return where the stop string that ends first begins, and which it is."""
        starts = [(text.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        return min(found)[1:] if found else None


def partial_end(text: str, markers: list[str]) -> int:
    """Return the length of the longest end of `text` that begins one of `markers` without being all of it."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
