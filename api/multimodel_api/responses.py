"""OpenAI's wire types for the stateless core of `/v1/responses`: what we read of a request and what we answer."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from multimodel_api.chat import MAX_TOOLS, FunctionSpec
from multimodel_api.openai import NullIsAbsent, SamplingFields, described

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(BaseModel):
    """A text part of an item's content."""

    type: Literal["input_text", "output_text", "text"]
    text: str


Texts = Annotated[str | list[InputText], described("text, or a list of text parts ({'type': 'input_text', 'text': …})")]


class MessageItem(BaseModel):
    """Something said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts


class FunctionCallItem(BaseModel):
    """A call of a function that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(BaseModel):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Texts


class ReasoningText(BaseModel):
    """A part of the model's reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(BaseModel):
    """What the model thought."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


def _kind_of_item(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of_item),
]


class FunctionTool(FunctionSpec):
    """A function that the model may call."""

    type: Literal["function"]


class NamedFunction(BaseModel):
    """`tool_choice` for one function."""

    type: Literal["function"]
    name: str


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedFunction,
    described("'none', 'auto', 'required' or {'type': 'function', 'name': …}"),
]


class TextFormat(BaseModel):
    """What form the answer's text is to have."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextSettings(BaseModel):
    """How the answer's text is to be."""

    format: TextFormat = TextFormat()


class ReasoningSettings(BaseModel):
    """How much the model is to think."""

    effort: str | None = None


class ResponsesRequest(SamplingFields, NullIsAbsent):
    """Body of `POST /v1/responses`; nothing is stored, so a request carries the whole conversation."""

    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: None = None
    conversation: None = None
    background: bool | None = None

    @field_validator("previous_response_id", "conversation", mode="before")
    @classmethod
    def _nothing_is_stored(cls, value: object) -> None:
        if value is not None:
            raise PydanticCustomError("stateless", "Responses are not stored; send the whole conversation as input")

    @field_validator("background")
    @classmethod
    def _answers_at_once(cls, value: bool | None) -> bool | None:
        if value:
            raise PydanticCustomError("background", "Responses cannot be made in the background; leave it out")
        return value


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class OutputMessage(BaseModel):
    """What the model said."""

    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A function that the model calls."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    arguments: str


class OutputReasoning(BaseModel):
    """What the model thought."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status
    summary: list[str] = []
    content: list[ReasoningText]


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokens(BaseModel):
    """How many tokens of the input were found in the prefix cache."""

    cached_tokens: int


class OutputTokens(BaseModel):
    """How many tokens of the output were reasoning."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts of one response."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    """Answer of `POST /v1/responses`, and what the events of its stream show of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None
    text: TextSettings
    tool_choice: ToolChoice
    tools: list[FunctionTool]
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
