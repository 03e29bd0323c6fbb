"""The wire types of `/tokenize` and `/detokenize`, in vLLM's shapes."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from multimodel_api.chat import ChatMessage, Tool
from multimodel_api.openai import NullIsAbsent, TokenId


class TokenizeRequest(NullIsAbsent):
    """Body of `POST /tokenize`: a prompt, or messages as the chat template writes them."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    """Without it a prompt gets the model's special tokens, and messages only those that the template writes."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "Give either a prompt or messages")
        return self


class Tokenization(BaseModel):
    """Answer of `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    """Body of `POST /detokenize`."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    tokens: list[TokenId]


class Detokenization(BaseModel):
    """Answer of `POST /detokenize`; special tokens are in it by name."""

    prompt: str
