"""Reasoning over HTTP: grammars make the model think and say what the tests expect."""

import json
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hello world"}]
THINKS = {"type": "lark", "value": 'start: "I STOP here.\\n</think>\\n\\n" "Yes, STOP it."'}
CHAT = "/v1/chat/completions"


def chat(server: Any, **fields: Any) -> Any:
    with server.openai() as client:
        body = {"grammar": THINKS, "enable_thinking": True, **fields.pop("extra_body", {})}
        return client.chat.completions.create(model="tiny", messages=HELLO, extra_body=body, **fields)


@pytest.mark.parametrize("kwargs", [{}, {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": None}])
def test_reasoning_is_told_apart_and_counted(server: Any, kwargs: dict[str, Any]) -> None:
    completion = chat(server, extra_body=kwargs)
    message = completion.choices[0].message
    assert (message.reasoning_content, message.content) == ("I STOP here.", "Yes, STOP it.")
    usage = completion.usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_reasoning_is_streamed_before_the_answer(server: Any) -> None:
    with server.http() as client:
        body = {"messages": HELLO, "grammar": THINKS, "enable_thinking": True, "stream": True}
        events = client.post(CHAT, json=body).text.split("\n\n")[:-2]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    thoughts = [delta.get("reasoning_content", "") for delta in deltas]
    assert "".join(thoughts) == "I STOP here."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes, STOP it."
    last_thought = max(place for place, thought in enumerate(thoughts) if thought)
    assert not any(delta.get("content") for delta in deltas[: last_thought + 1])


def test_a_stop_string_counts_only_in_the_answer(server: Any) -> None:
    choice = chat(server, stop="STOP").choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("I STOP here.", "Yes, ")
    assert choice.finish_reason == "stop"


def test_without_thinking_the_text_is_as_it_is_written(server: Any) -> None:
    message = chat(server, extra_body={"enable_thinking": False}).choices[0].message
    assert message.content == "I STOP here.\n</think>\n\nYes, STOP it."
    assert message.reasoning_content is None


def test_structured_output_follows_the_reasoning(server: Any) -> None:
    regex = {"type": "regex", "value": "(yes|no)/[0-9]"}
    completion = chat(server, extra_body={"grammar": regex}, max_tokens=400, temperature=1, seed=3)
    message = completion.choices[0].message
    assert message.reasoning_content
    if completion.choices[0].finish_reason == "stop":
        assert message.content.partition("/")[0] in ("yes", "no")
    else:
        assert message.content == ""


def test_other_apis_show_the_reasoning_too(server: Any) -> None:
    with server.http() as client:
        asked = {"grammar": THINKS, "messages": HELLO, "max_tokens": 100, "thinking": {"type": "enabled"}}
        message = client.post("/v1/messages", json=asked).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["thinking"] == "I STOP here."
    assert message["content"][1]["text"] == "Yes, STOP it."
