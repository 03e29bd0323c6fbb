"""Anthropic's messages and OpenAI's responses as the chat completions that the template gets."""

from typing import Any

import pytest

from multimodel_api.anthropic import MessagesRequest
from multimodel_api.chat import ChatCompletionRequest
from multimodel_api.errors import ApiError
from multimodel_api.responses import ResponsesRequest
from multimodel_server.routes import messages_chat, responses_chat

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}
CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
RESULT = [{"type": "text", "text": "3 degrees"}]
THOUGHT = [{"type": "reasoning_text", "text": "They ask."}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "reasoning_content": "They ask.", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abc123def", "content": "3 degrees"},
    {"role": "user", "content": "And now?"},
]


def messages(**fields: Any) -> ChatCompletionRequest:
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    return messages_chat.chat_of(MessagesRequest.model_validate(body))


def responses(**fields: Any) -> ChatCompletionRequest:
    return responses_chat.chat_of(ResponsesRequest.model_validate({"input": "hi", **fields}))


def said(chat: ChatCompletionRequest) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in chat.messages]


def test_an_anthropic_conversation_with_tools() -> None:
    chat = messages(
        system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "They ask.", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "abc123def", "name": "weather", "input": {"city": "Zürich"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "abc123def", "content": RESULT},
                    {"type": "text", "text": "And "},
                    {"type": "text", "text": "now?"},
                ],
            },
        ],
    )  # fmt: skip
    assert said(chat) == CONVERSATION


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, "auto", True),
        ({"type": "any"}, "required", True),
        ({"type": "none"}, "none", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}, True),
    ],
)
def test_anthropic_tools_and_settings(choice: Any, expected: Any, parallel: bool) -> None:
    tools = [{"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}]
    chat = messages(
        tools=tools, tool_choice=choice, stop_sequences=["END"], thinking={"type": "enabled", "budget_tokens": 99},
        temperature=0.5, top_k=3, seed=4,
    )  # fmt: skip
    dumped = chat.model_dump()
    assert dumped["tools"] == [{"type": "function", "function": FUNCTION}]
    assert (dumped["tool_choice"], chat.parallel_tool_calls) == (expected, parallel)
    assert (chat.stop, chat.token_limit, chat.enable_thinking) == (["END"], 9, True)
    assert (chat.temperature, chat.top_k, chat.seed) == (0.5, 3, 4)


def test_a_user_cannot_call_tools() -> None:
    block = {"type": "tool_use", "id": "x", "name": "weather", "input": {}}
    with pytest.raises(ApiError, match="tool_use"):
        messages(messages=[{"role": "user", "content": [block]}])


def test_the_items_of_a_response() -> None:
    chat = responses(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": THOUGHT},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "abc123def", "name": "weather", "arguments": '{"city": "Zürich"}'},
            {"type": "function_call_output", "call_id": "abc123def", "output": "3 degrees"},
            {"role": "user", "content": "And now?"},
        ],
    )  # fmt: skip
    assert said(chat) == CONVERSATION


def test_parallel_calls_are_one_message_and_later_answers_another() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    chat = responses(
        input=[
            {"role": "user", "content": "a"},
            {**call, "call_id": "1"},
            {**call, "call_id": "2"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
            {"type": "function_call_output", "call_id": "2", "output": "y"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"type": "reasoning", "content": []},
        ]
    )
    assert [message.role for message in chat.messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "assistant",
    ]
    assert [call.id for call in chat.messages[1].tool_calls or []] == ["1", "2"]


def test_the_settings_of_a_response() -> None:
    tool = {"type": "function", "strict": True, **FUNCTION}
    chat = responses(
        tools=[tool], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False,
        max_output_tokens=7, reasoning={"effort": "low", "summary": "auto"}, truncation="auto", top_p=0.5,
    )  # fmt: skip
    assert chat.tools[0].model_dump(exclude_none=True)["function"] == {**FUNCTION, "strict": True}
    assert [tool.function.name for tool in chat.must_call] == ["weather"]
    assert (chat.token_limit, chat.truncate_sequence, chat.top_p) == (7, True, 0.5)
    assert chat.template_kwargs == {"reasoning_effort": "low"}
    assert not chat.parallel_tool_calls


@pytest.mark.parametrize("kind", ["text", "json_object", "json_schema"])
def test_the_form_of_a_responses_text(kind: Any) -> None:
    more = {"name": "place", "schema": SCHEMA, "strict": True} if kind == "json_schema" else {}
    chat = responses(text={"format": {"type": kind, **more}})
    assert chat.response_format is not None
    assert chat.response_format.type == kind
    if chat.response_format.json_schema is not None:
        assert chat.response_format.json_schema.definition == SCHEMA
