"""Requests for responses as chat completions, which is what the model's template knows."""

from typing import Any

from pydantic import ValidationError

from multimodel_api.chat import ChatCompletionRequest
from multimodel_api.errors import from_validation
from multimodel_api.openai import SamplingFields
from multimodel_api.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    FunctionTool,
    Item,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponsesRequest,
    TextFormat,
    Texts,
)


def chat_of(body: ResponsesRequest) -> ChatCompletionRequest:
    """Return the chat completion that a request asks for; raises the 400."""
    sampling = body.model_dump(include=set(SamplingFields.model_fields), exclude_unset=True, by_alias=True)
    choice = body.tool_choice
    fields = {
        **sampling,
        **({"response_format": _format(body.text.format)} if body.text is not None else {}),
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "tools": [_tool(tool) for tool in body.tools],
        "tool_choice": {"type": "function", "function": {"name": choice.name}}
        if isinstance(choice, NamedFunction)
        else choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "truncate_sequence": body.truncation == "auto",
    }
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from error


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*found, {"role": "user", "content": body.input}]
    for item in body.input:
        _add(found, item)
    return [message for message in found if "content" in message or "tool_calls" in message]


def _add(found: list[dict[str, Any]], item: Item) -> None:
    """Add an item; what an assistant thinks, says and calls in a row is one message."""
    match item:
        case MessageItem(role="assistant"):
            message = _assistant(found, opened=("content", "tool_calls"))
            message["content"] = _text(item.content)
        case MessageItem():
            found.append({"role": item.role, "content": _text(item.content)})
        case FunctionOutputItem():
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            calls = _assistant(found).setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case ReasoningItem():
            message = _assistant(found, opened=("content", "tool_calls", "reasoning_content"))
            message["reasoning_content"] = "".join(part.text for part in item.content or [])


def _assistant(found: list[dict[str, Any]], opened: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the assistant's message that is being made; a new one if that already has one of `opened`."""
    if not found or found[-1]["role"] != "assistant" or any(name in found[-1] for name in opened):
        found.append({"role": "assistant"})
    return found[-1]


def _text(texts: Texts) -> str:
    return texts if isinstance(texts, str) else "".join(part.text for part in texts)


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _format(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    schema = {"name": wanted.name, "schema": wanted.definition, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": {name: value for name, value in schema.items() if value is not None}}
