"""Anthropic's requests as chat completions, which is what the model's template knows."""

import json
from typing import Any

from pydantic import ValidationError

from multimodel_api.anthropic import (
    CountTokensRequest,
    Message,
    TextBlock,
    Texts,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from multimodel_api.chat import ChatCompletionRequest
from multimodel_api.errors import from_validation, invalid_request
from multimodel_api.openai import SamplingFields

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKS = {"enabled": True, "disabled": False}


def chat_of(body: CountTokensRequest) -> ChatCompletionRequest:
    """Return the chat completion that a request asks for; raises the 400."""
    sampling = body.model_dump(include=set(SamplingFields.model_fields), exclude_unset=True, by_alias=True)
    system = [{"role": "system", "content": _text(body.system)}] if body.system else []
    chosen = body.tool_choice or ToolChoice(type="auto")
    fields = {
        **sampling,
        "stop": body.stop_sequences or body.stop,
        "messages": [*system, *(one for message in body.messages for one in _messages(message))],
        "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or []],
        "tool_choice": _choice(chosen),
        "parallel_tool_calls": not chosen.disable_parallel_tool_use,
        "enable_thinking": _THINKS.get(body.thinking.type) if body.thinking is not None else None,
    }
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from error


def _messages(message: Message) -> list[dict[str, Any]]:
    """Return a message as chat knows it: what tools returned are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if message.role == "assistant":
        return [_assistant(message)]
    found: list[dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)})
        elif not isinstance(block, TextBlock):
            raise invalid_request(f"messages: a user's message can hold no {block.type} block.", param="messages")
        elif found and found[-1]["role"] == "user":
            found[-1]["content"] += block.text
        else:
            found.append({"role": "user", "content": block.text})
    return found


def _assistant(message: Message) -> dict[str, Any]:
    blocks = message.content if isinstance(message.content, list) else []
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    said = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thought = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    return {
        "role": "assistant",
        "content": said,
        **({"tool_calls": calls} if calls else {}),
        **({"reasoning_content": thought} if thought else {}),
    }


def _text(texts: Texts) -> str:
    return texts if isinstance(texts, str) else "".join(block.text for block in texts)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description") if name in tool}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return _CHOICES[choice.type]
