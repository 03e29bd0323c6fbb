"""Anthropic's wire types for `/v1/messages`: what we read of a request and what we answer."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multimodel_api.errors import ApiError
from multimodel_api.openai import NullIsAbsent, SamplingFields, described

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

MESSAGES_PATH = "/v1/messages"

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class TextBlock(BaseModel):
    """Text that a user or the model says."""

    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(BaseModel):
    """What the model thought before it answered; the signature is empty."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class ToolUseBlock(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Texts = Annotated[str | list[TextBlock], described("text, or a list of text blocks ({'type': 'text', 'text': …})")]


class ToolResultBlock(BaseModel):
    """What a called tool returned."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: Texts = ""


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Field(strict=True)] | list[Block]


class CustomTool(BaseModel):
    """A function that the model may call."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class ToolChoice(BaseModel):
    """Whether a tool must be called: any of them, or the one of that name."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(BaseModel):
    """Whether the model is to think; how much it thinks is its own affair."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["enabled", "disabled", "adaptive"]


class CountTokensRequest(SamplingFields, NullIsAbsent):
    """Body of `POST /v1/messages/count_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    system: Texts | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    stop_sequences: list[str] | None = None


class MessagesRequest(CountTokensRequest):
    """Body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1)]


class MessagesUsage(BaseModel):
    """Token counts; `input_tokens` leaves out those found in the prefix cache."""

    input_tokens: int
    cache_read_input_tokens: int = 0
    output_tokens: int


class MessagesAnswer(BaseModel):
    """Answer of `POST /v1/messages`, and what its stream begins with."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """Answer of `POST /v1/messages/count_tokens`."""

    input_tokens: int


class MessagesErrorDetail(BaseModel):
    """The inside of Anthropic's error object."""

    type: str
    message: str


class MessagesError(BaseModel):
    """Anthropic's error object."""

    type: Literal["error"] = "error"
    error: MessagesErrorDetail


def is_messages_path(path: str) -> bool:
    """Say whether a request's path is one of those that Anthropic's clients ask."""
    return path == MESSAGES_PATH or path.startswith((f"{MESSAGES_PATH}/", f"{MESSAGES_PATH}?"))


def messages_error(error: ApiError) -> MessagesError:
    """Return an error as Anthropic's clients know it."""
    kind = _ERROR_TYPES.get(int(error.status), "api_error" if error.status >= 500 else "invalid_request_error")
    return MessagesError(error=MessagesErrorDetail(type=kind, message=error.detail.message))
