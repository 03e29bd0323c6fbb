"""Reasoning, stop strings and calls of tools in texts as models write them, however the text is cut."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodel_server.text.parts import CallArguments, CallBegin, Content, Part, Reasoning, Reply, gathered
from multimodel_server.text.reasoning import ReasoningReader
from multimodel_server.text.reply import ReplyReader
from multimodel_server.text.tool_calls import ToolCallReader
from multimodel_server.text.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "a \\"}{ b"}}'
NAMES = ["get_weather", "add"]


def read(text: list[str], known: ToolFormat | None = None, *, thinks: bool | None = None, stop: str = "") -> list[Part]:
    reader = ReplyReader(
        [stop] if stop else [],
        reasoning=None if thinks is None else ReasoningReader(begun=thinks),
        tools=None if known is None else ToolCallReader(known, NAMES, "answer"),
    )
    parts: list[Part] = []
    for piece in text:
        parts += reader.feed(piece)
        if reader.stopped:
            break
    return parts + reader.flush()


def plain(reply: Reply) -> tuple[str, str, list[tuple[str, Any]]]:
    return reply.reasoning, reply.content, [(call.name, json.loads(call.arguments)) for call in reply.calls]


def whole(text: str, known: ToolFormat | None = None, **how: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return what is read, the same whether the text comes whole or character by character."""
    at_once = plain(gathered(read([text], known, **how)))
    assert plain(gathered(read(list(text), known, **how))) == at_once
    return at_once


PARIS = ("get_weather", {"city": "Paris", "unit": 'a "}{ b'})
ADD = ("add", {"a": 1, "b": [2, {"c": None}]})
ADD_TEXT = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": null}]}}'


@pytest.mark.parametrize(
    ("known", "text", "content", "calls"),
    [
        (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", "", [PARIS]),
        (HERMES, f"I will look.\n\n<tool_call>\n{WEATHER}\n</tool_call>", "I will look.", [PARIS]),
        (HERMES, f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{ADD_TEXT}</tool_call>\n", "", [PARIS, ADD]),
        (HERMES, f"<tool_call>\n{WEATHER}", "", [PARIS]),
        (HERMES, '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", {"a": 1})]),
        (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", {"a": 1})]),
        (HERMES, "a <tool_call> is a marker", "a <tool_call> is a marker", []),
        (HERMES, "x < y and <tool", "x < y and <tool", []),
        (HERMES, "<tool_call>{no json}</tool_call>", "<tool_call>{no json}</tool_call>", []),
        (HERMES, '<tool_call>{"name": ', '<tool_call>{"name": ', []),
        (HERMES, "ends with blanks \n", "ends with blanks \n", []),
        (MISTRAL, f"[TOOL_CALLS][{WEATHER}, {ADD_TEXT}]", "", [PARIS, ADD]),
        (MISTRAL, f"[TOOL_CALLS] [{WEATHER}]", "", [PARIS]),
        (MISTRAL, "[1, 2]", "[1, 2]", []),
        (LLAMA, WEATHER.replace("arguments", "parameters"), "", [PARIS]),
        (LLAMA, "<|python_tag|>" + WEATHER.replace("arguments", "parameters"), "", [PARIS]),
        (LLAMA, f"{WEATHER}; {ADD_TEXT}", "", [PARIS, ADD]),
        (LLAMA, '{"name": "Ada", "parameters": {"age": 36}}', '{"name": "Ada", "parameters": {"age": 36}}', []),
        (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
        (LLAMA, "Just text with { braces }.", "Just text with { braces }.", []),
    ],
)
def test_recorded_calls(known: ToolFormat, text: str, content: str, calls: list[Any]) -> None:
    assert whole(text, known) == ("", content, calls)


def test_a_call_begins_before_its_arguments_are_there_and_they_come_as_they_are_written() -> None:
    reader = ToolCallReader(HERMES, NAMES, "answer")
    assert reader.feed('Hm. <tool_call>\n{"name": "add"') == [Content("Hm.")]
    (begin, *_) = reader.feed(', "arguments": {"a"')
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name, len(begin.call_id)) == (0, "add", 9)
    assert reader.feed(": 1") == [CallArguments(0, ": 1")]
    assert reader.feed("}") == [CallArguments(0, "}")]
    assert reader.feed("}\n</tool_") == []
    assert reader.feed("call>") == []
    assert reader.flush() == []
    assert reader.has_called


def test_calls_have_ids_of_their_own() -> None:
    parts = read([f"[TOOL_CALLS][{WEATHER}, {ADD_TEXT}]"], MISTRAL)
    ids = [part.call_id for part in parts if isinstance(part, CallBegin)]
    assert len(set(ids)) == 2
    assert all(call_id.isalnum() and len(call_id) == 9 for call_id in ids)


@pytest.mark.parametrize(
    ("text", "thinks", "reasoning", "content"),
    [
        ("<think>\nWell.\n</think>\n\nYes.", False, "Well.", "Yes."),
        ("Well.</think>Yes.", True, "Well.", "Yes."),
        ("\n\n  indented\nthoughts \n</think>\n", True, "indented\nthoughts", ""),
        ("never ends", True, "never ends", ""),
        ("<think></think>Yes.", False, "", "Yes."),
        ("No thoughts.", False, "", "No thoughts."),
        ("<thin", False, "", "<thin"),
        ("x</thin", True, "x</thin", ""),
        ("  spaced", False, "", "  spaced"),
        ("a <think>b</think>", False, "", "a <think>b</think>"),
    ],
)
def test_reasoning(text: str, thinks: bool, reasoning: str, content: str) -> None:
    assert whole(text, thinks=thinks) == (reasoning, content, [])


def test_a_stop_string_is_not_matched_inside_the_reasoning() -> None:
    assert whole("I could STOP here.</think>Now STOP it.", thinks=True, stop="STOP") == (
        "I could STOP here.",
        "Now ",
        [],
    )


def test_a_stop_string_after_a_held_blank_loses_nothing_before_it() -> None:
    assert whole("a b \nSTOP c", HERMES, stop="STOP") == ("", "a b \n", [])


def test_reasoning_and_then_calls() -> None:
    text = f"<think>Look it up.</think>\n\nOne moment.\n<tool_call>\n{WEATHER}\n</tool_call>"
    assert whole(text, HERMES, thinks=False) == ("Look it up.", "One moment.", [PARIS])


fragments = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[", "]", "{", "}", '"', "\\", ",", " ", "\n", "a",
     '{"name": "add", "arguments": {', ADD_TEXT, "<think>", "</think>", "<|python_tag|>"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(fragments, max_size=12).map("".join), st.sampled_from([HERMES, LLAMA, MISTRAL]), st.booleans(), st.data()
)
def test_cutting_a_text_changes_nothing(text: str, known: ToolFormat, thinks: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def summary(parts: list[Part]) -> tuple[str, str, list[tuple[str, str]]]:
        reply = gathered(parts)
        return reply.reasoning, reply.content, [(call.name, call.arguments) for call in reply.calls]

    assert summary(read(pieces, known, thinks=thinks)) == summary(read([text], known, thinks=thinks))


@settings(max_examples=200, deadline=None)
@given(st.lists(fragments, max_size=10).map("".join), st.sampled_from([HERMES, LLAMA, MISTRAL]))
def test_a_text_without_calls_is_its_content(text: str, known: ToolFormat) -> None:
    parts = read(list(text), known)
    if not any(isinstance(part, CallBegin) for part in parts):
        assert gathered(parts).content == text
    assert not any(isinstance(part, Reasoning) for part in parts)
