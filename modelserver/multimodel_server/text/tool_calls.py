"""Calls of tools in an answer's text, told apart from its content as the text comes."""

import json
import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Any

from multimodel_server.text.parts import CallArguments, CallBegin, Content, Part
from multimodel_server.text.stops import partial_end
from multimodel_server.text.tool_formats import ToolFormat, call_id

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""A call up to its arguments, in the order in which models write it."""


class JsonSpan:
    """Finds where a JSON object or list ends, fed piece by piece from its first character on."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end_in(self, text: str) -> int | None:
        """Return the place after the value's last character, None if the value goes on."""
        for place, character in enumerate(text, start=1):
            if self._in_string:
                self._step_in_string(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place
        return None

    def _step_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False


class _CallReader:
    """Reads one call's JSON object; its arguments are passed on as they come if its name comes before them."""

    def __init__(self, index: int, call_id: str, names: Collection[str] | None) -> None:
        """`names` are the only functions that make the object a call; None takes any."""
        self.index = index
        self._call_id = call_id
        self._names = names
        self._text = ""
        self._whole = JsonSpan()
        self._arguments: JsonSpan | None = None
        self.begun = False

    def feed(self, text: str) -> tuple[list[Part], str | None]:
        """Return what the text adds, and what follows the call once it has ended."""
        end = self._whole.end_in(text)
        mine, rest = (text, None) if end is None else (text[:end], text[end:])
        parts = self._stream(mine) if self.begun else self._look_for_head(mine)
        if end is not None and not self.begun:
            parts = self._parsed()
        return parts, rest

    def given_up(self) -> list[Part]:
        """Return what an unfinished object was, at the end of the answer."""
        return [] if self.begun else [Content(self._text)]

    def _look_for_head(self, text: str) -> list[Part]:
        self._text += text
        head = _HEAD.match(self._text)
        if head is None or not self._is_known(name := _name(head[1])):
            return []
        self.begun, self._arguments = True, JsonSpan()
        return [CallBegin(self.index, self._call_id, name), *self._stream(self._text[head.end() :])]

    def _stream(self, text: str) -> list[Part]:
        if self._arguments is None or not text:
            return []
        end = self._arguments.end_in(text)
        if end is not None:
            self._arguments = None
        return [CallArguments(self.index, text[:end])]

    def _parsed(self) -> list[Part]:
        """Return the whole call where its keys come in another order, or its text if it is none."""
        try:
            call: dict[str, Any] = json.loads(self._text)
        except (ValueError, RecursionError):
            return [Content(self._text)]
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
        if not isinstance(name, str) or not self._is_known(name):
            return [Content(self._text)]
        self.begun = True
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        return [CallBegin(self.index, self._call_id, name), CallArguments(self.index, text)]

    def _is_known(self, name: str) -> bool:
        return self._names is None or name in self._names


class _Place(Enum):
    TEXT = auto()
    BETWEEN = auto()
    CALL = auto()


class ToolCallReader:
    """Parts calls from content; what looks like a call and is none is content, to the last character."""

    def __init__(self, known: ToolFormat, names: Collection[str], answer: str) -> None:
        """`answer` is the name of the answer, of which the calls' ids are made."""
        self._format = known
        self._names = names
        self._answer = answer
        self._place = _Place.TEXT
        self._held = ""
        self._opening = ""
        """What has been read since a call seemed to begin, as long as none has."""
        self._may_be_bare = known.may_be_bare
        self._calls = 0
        self._call: _CallReader | None = None

    @property
    def has_called(self) -> bool:
        """Whether the answer calls a tool."""
        return self._calls > 0

    def feed(self, text: str) -> list[Part]:
        """Return what the text adds."""
        self._held += text
        parts: list[Part] = []
        read = {_Place.TEXT: self._read_text, _Place.BETWEEN: self._read_between, _Place.CALL: self._read_call}
        while read[self._place](parts):
            pass
        return parts

    def flush(self) -> list[Part]:
        """Return what is left at the end of the answer."""
        left, self._held = self._held, ""
        opening, self._opening = self._opening, ""
        parts: list[Part] = []
        if self._call is not None:
            parts, self._call = self._call.given_up(), None
        elif left and not (self.has_called and left.isspace()):
            parts = [Content(left)]
        return [Content(opening), *parts] if opening else parts

    def _read_text(self, parts: list[Part]) -> bool:
        """Pass content on up to a marker; white space before it belongs to neither."""
        if self._may_be_bare:
            begun = self._held.lstrip()
            self._may_be_bare = not begun
            if begun.startswith("{"):
                return self._begin_call(self._held[: -len(begun)], begun)
            if not begun:
                return False
        before, marker, after = self._held.partition(self._format.begin)
        if marker:
            self._opening = before[len(before.rstrip()) :] + marker
            self._place, self._held = _Place.BETWEEN, after
            _add_content(parts, before.rstrip())
            return True
        sure = len(before[: len(before) - partial_end(before, [self._format.begin])].rstrip())
        _add_content(parts, self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _read_between(self, parts: list[Part]) -> bool:
        """Pass over what stands before, between and after calls."""
        end = self._format.end
        rest = self._held.lstrip(" \n\r\t[,;" if self._format.in_list or not end else " \n\r\t")
        passed = self._held[: len(self._held) - len(rest)]
        if not rest or (end and end != rest and end.startswith(rest)):
            return False
        if rest.startswith("{"):
            return self._begin_call(self._opening + passed, rest)
        self._place = _Place.TEXT
        if self._opening:  # The marker was followed by no call.
            _add_content(parts, self._opening)
            self._opening = ""
        elif end and rest.startswith(end):
            self._held = rest.removeprefix(end)
        elif self._format.in_list:
            self._held = rest.removeprefix("]")
        return True

    def _begin_call(self, opening: str, rest: str) -> bool:
        self._opening, self._held, self._place = opening, rest, _Place.CALL
        names = self._names if self._format.may_be_bare else None
        self._call = _CallReader(self._calls, call_id(self._answer, self._calls), names)
        return True

    def _read_call(self, parts: list[Part]) -> bool:
        if self._call is None or not self._held:
            return False
        text, self._held = self._held, ""
        found, rest = self._call.feed(text)
        if self._call.begun:
            self._calls = self._call.index + 1
            self._opening = ""
        elif found:  # It was no call.
            found = [Content(self._opening), *found] if self._opening else found
            self._opening = ""
        parts.extend(found)
        if rest is None:
            return False
        self._place = _Place.BETWEEN if self._call.begun else _Place.TEXT
        self._held, self._call = rest, None
        return True


def _add_content(parts: list[Part], text: str) -> None:
    if text:
        parts.append(Content(text))


def _name(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return ""
