"""The reasoning that some models write before they answer, between `<think>` and `</think>`."""

from enum import Enum, auto

from multimodel_server.text.stops import partial_end

BEGIN, END = "<think>", "</think>"


class _Place(Enum):
    START = auto()
    THINKING = auto()
    AFTER = auto()
    ANSWER = auto()


class ReasoningReader:
    """Parts reasoning from what follows it; the white space around it belongs to neither."""

    def __init__(self, *, begun: bool) -> None:
        """`begun` says that the prompt has already opened the reasoning."""
        self._place = _Place.THINKING if begun else _Place.START
        self._held = ""
        self._thought = False

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._place is _Place.THINKING

    def feed(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the answer that can be told apart by now."""
        self._held += text
        if self._place is _Place.START:
            self._look_for_begin()
        thought = self._take_thought() if self._place is _Place.THINKING else ""
        if self._place is _Place.AFTER and (said := self._held.lstrip()):
            self._place, self._held = _Place.ANSWER, said
        if self._place is not _Place.ANSWER:
            return thought, ""
        said, self._held = self._held, ""
        return thought, said

    def flush(self) -> tuple[str, str]:
        """Return what is held at the end of the answer."""
        held, self._held = self._held, ""
        if self._place is _Place.THINKING:
            return held.rstrip(), ""
        return "", "" if self._place is _Place.AFTER else held

    def _look_for_begin(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(BEGIN):
            self._place, self._held = _Place.THINKING, begun.removeprefix(BEGIN)
        elif not BEGIN.startswith(begun):
            self._place = _Place.ANSWER

    def _take_thought(self) -> str:
        thought, end, rest = self._held.partition(END)
        if end:
            self._place, self._held = _Place.AFTER, rest
            thought = thought.rstrip()
        else:
            sure = len(thought) - partial_end(thought, [END])
            thought = thought[:sure].rstrip()
            self._held = self._held[len(thought) :]
        if not self._thought:
            trimmed = thought.lstrip()
            self._thought = bool(trimmed)
            return trimmed
        return thought
