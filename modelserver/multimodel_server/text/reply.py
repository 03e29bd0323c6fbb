"""An answer's text, read as it comes: reasoning first, then content up to a stop string, then calls of tools."""

from multimodel_server.text.parts import Content, Part, Reasoning
from multimodel_server.text.reasoning import ReasoningReader
from multimodel_server.text.stops import StopFilter
from multimodel_server.text.tool_calls import ToolCallReader


class ReplyReader:
    """Turns one answer's text into parts; stop strings count only outside of the reasoning."""

    def __init__(
        self, stops: list[str], *, reasoning: ReasoningReader | None = None, tools: ToolCallReader | None = None
    ) -> None:
        self._stops = StopFilter(stops)
        self._reasoning = reasoning
        self._tools = tools

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the answer."""
        return self._stops.stopped_by

    @property
    def withheld(self) -> int:
        """Characters at the end of the text so far that a stop string keeps back."""
        return self._stops.withheld

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._reasoning is not None and self._reasoning.is_thinking

    @property
    def has_called(self) -> bool:
        """Whether the answer calls a tool."""
        return self._tools is not None and self._tools.has_called

    def feed(self, text: str) -> list[Part]:
        """Return what the text adds."""
        thought, said = ("", text) if self._reasoning is None else self._reasoning.feed(text)
        return self._parts(thought, self._stops.feed(said))

    def flush(self) -> list[Part]:
        """Return what is left at the end of the answer."""
        thought, said = ("", "") if self._reasoning is None or self.stopped else self._reasoning.flush()
        said = self._stops.feed(said)
        if not self.stopped:
            said += self._stops.flush()
        parts = self._parts(thought, said)
        return parts + self._tools.flush() if self._tools is not None else parts

    def _parts(self, thought: str, said: str) -> list[Part]:
        parts: list[Part] = [Reasoning(thought)] if thought else []
        if not said:
            return parts
        return parts + (self._tools.feed(said) if self._tools is not None else [Content(said)])
