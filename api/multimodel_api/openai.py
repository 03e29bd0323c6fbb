"""OpenAI's wire types: what every request for text has, and completions; `chat` has those of chat completions.

Unknown request fields are ignored, as OpenAI's servers and every client expect; known ones are checked strictly.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

FinishReason = Literal["stop", "length", "tool_calls"]

MAX_STOP_SEQUENCES = 16
MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_SEQUENCE_BREAKERS = 64

TokenId = Annotated[int, Field(ge=0)]
BiasedToken = Annotated[int, Field(ge=0, strict=False)]
"""A token id; JSON writes the names of an object's fields as text."""
LogitBias = Annotated[float, Field(ge=-100, le=100)]
SequenceBreaker = Annotated[str, Field(min_length=1, max_length=64)]


def described(expected: str) -> WrapValidator:
    """Return the validator that turns the many errors of a union into one: what was expected of the whole field."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("described", "Input should be {expected}", {"expected": expected}) from error

    return WrapValidator(check)


class StreamOptions(BaseModel):
    """What a stream carries beside the deltas."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """The schema that an answer has to follow; it is always followed strictly."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    definition: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """Plain text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _schema_is_there(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if value is None and info.data.get("type") == "json_schema":
            raise PydanticCustomError("missing", "Field required")
        return value


class AnswerGrammar(BaseModel):
    """What the whole answer must be: `value` is a regular expression, a Lark grammar, or a JSON schema."""

    type: Literal["regex", "json_schema", "lark"]
    value: str | dict[str, Any]

    @field_validator("value")
    @classmethod
    def _fits_the_type(cls, value: str | dict[str, Any], info: ValidationInfo) -> str | dict[str, Any]:
        is_schema = info.data.get("type") == "json_schema"
        if is_schema is isinstance(value, str):
            expected = "an object" if is_schema else "text"
            raise PydanticCustomError("grammar_value", "Input should be {expected}", {"expected": expected})
        return value


class SamplingFields(BaseModel):
    """Request fields that steer sampling; None means the model's own generation_config, then the server's default."""

    model_config = ConfigDict(strict=True)

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=10)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1)] | None = None
    dry_sequence_breakers: Annotated[list[SequenceBreaker], Field(max_length=MAX_SEQUENCE_BREAKERS)] | None = None
    logit_bias: Annotated[dict[BiasedToken, LogitBias], Field(max_length=MAX_LOGIT_BIASES)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    grammar: AnswerGrammar | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOP_SEQUENCES)] = []
    stop_token_ids: list[TokenId] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    model: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: object) -> object:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("stream", mode="before")
    @classmethod
    def _stream_off(cls, value: object) -> object:
        return False if value is None else value

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class NullIsAbsent(BaseModel):
    """A request in which a field given as null is one not given, since some clients send them all."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class GenerationFields(SamplingFields, NullIsAbsent):
    """What OpenAI's requests for text have beside sampling."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    truncate_sequence: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """The smaller goes first."""
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    """Only requests with the same salt share cached prefixes."""


Prompt = Annotated[
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)],
    described(f"text, a list of token ids, or a list of up to {MAX_PROMPTS} of either, none of them empty"),
]
"""Text, token ids, or several of one of them."""


def each_prompt(prompt: Prompt) -> list[str | list[int]]:
    """Return the prompts one by one."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [one for one in prompt if not isinstance(one, int)]


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`; `max_tokens` may be 0 where the prompt is echoed."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Annotated[bool, Field(validate_default=True)] = False
    suffix: None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate."""
        return self.max_tokens

    @property
    def candidates(self) -> int:
        """How many continuations of each prompt to make, of which the best `n` are returned."""
        return self.best_of or self.n

    @field_validator("suffix", mode="before")
    @classmethod
    def _no_suffix(cls, value: object) -> None:
        if value:
            raise PydanticCustomError("suffix", "Text cannot be filled in before a suffix; leave it out")

    @field_validator("best_of")
    @classmethod
    def _enough_to_choose_from(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("n", 1):
            raise PydanticCustomError("best_of", "Input should be at least n")
        if value > info.data.get("n", 1) and info.data.get("stream"):
            raise PydanticCustomError("best_of", "The best cannot be chosen while streaming; set best_of to n")
        return value

    @field_validator("echo")
    @classmethod
    def _something_to_say(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("max_tokens") == 0:
            raise PydanticCustomError("echo", "max_tokens is 0: there is nothing to return without echo")
        return value


class CachedTokens(BaseModel):
    """How many tokens of the prompt were found in the prefix cache."""

    cached_tokens: int


class CompletionTokens(BaseModel):
    """How many tokens of the answer were reasoning."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: CompletionTokens | None = None


class CompletionLogprobs(BaseModel):
    """Tokens with their log-probabilities and where each begins in the text; a prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One choice of a completion, whole or as a chunk."""

    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """Answer of `POST /v1/completions`, and every event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
