"""OpenAI's wire types of chat completions: the conversation with its tools, and the answer, whole or in chunks."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from multimodel_api.openai import FinishReason, GenerationFields, Usage, described

Role = Literal["system", "developer", "user", "assistant", "tool"]

MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128


class TextPart(BaseModel):
    """A text part of a message's content list."""

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """The function that an assistant called; the arguments are JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


Content = Annotated[str | list[TextPart], described("text, or a list of text parts ({'type': 'text', 'text': …})")]


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Role
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    content: Content | None = Field(None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _said_something(cls, value: Content | None, info: ValidationInfo) -> Content | None:
        if value is None and "role" in info.data and "tool_calls" in info.data and not info.data["tool_calls"]:
            raise PydanticCustomError("missing", "Field required")
        return value

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class FunctionSpec(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool that the model may use."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(BaseModel):
    """The name of a function that must be called."""

    name: str


class NamedTool(BaseModel):
    """`tool_choice` for one function."""

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool,
    described("'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"),
]


class ToolFields(BaseModel):
    """The tools of a request, and whether they must be used."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> list[Tool]:
        """The tools of which one must be called; empty where the model may also just answer."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return self.tools if self.tool_choice == "required" else []

    @field_validator("tools")
    @classmethod
    def _one_tool_a_name(cls, tools: list[Tool]) -> list[Tool]:
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise PydanticCustomError("tools", "Every function needs a name of its own")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _choice_is_offered(cls, choice: ToolChoice, info: ValidationInfo) -> ToolChoice:
        offered = [tool.function.name for tool in info.data.get("tools", [])]
        if isinstance(choice, NamedTool) and choice.function.name not in offered:
            raise PydanticCustomError("tool_choice", "Input should name one of tools")
        if choice == "required" and not offered:
            raise PydanticCustomError("tool_choice", "Input should be 'required' only with tools")
        return choice


class ChatCompletionRequest(GenerationFields, ToolFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, under either of its two names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        """How many alternatives to report beside each token's log-probability; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the chat template is given beside messages and tools."""
        named = {"enable_thinking": self.enable_thinking, "reasoning_effort": self.reasoning_effort}
        return self.chat_template_kwargs | {name: value for name, value in named.items() if value is not None}

    @field_validator("top_logprobs")
    @classmethod
    def _logprobs_agree(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("logprobs") is False:
            raise PydanticCustomError("top_logprobs", "Input should only be given with logprobs: true")
        return value


class TokenLogprob(BaseModel):
    """A token, its log-probability, and its bytes: a token need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """A token of the answer and the likeliest tokens in its place."""

    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(BaseModel):
    """The log-probabilities of a choice or a chunk."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer of a chat completion."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One choice of a chat completion."""

    index: int = 0
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions` without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionCallDelta(BaseModel):
    """What a chunk adds to a function call."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """What a chunk adds to a tool call; the first of a call has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class ChatDelta(BaseModel):
    """What a chat chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """One choice of a chat chunk."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed chat completion; the usage chunk has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
