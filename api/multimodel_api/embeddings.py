"""OpenAI's wire types of embeddings."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from multimodel_api.openai import NullIsAbsent, Prompt


class EmbeddingRequest(NullIsAbsent):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    truncate_sequence: bool = False

    @field_validator("dimensions", mode="before")
    @classmethod
    def _whole_vectors(cls, value: object) -> None:
        if value is not None:
            raise PydanticCustomError("dimensions", "Embeddings cannot be shortened; leave it out")


class Embedding(BaseModel):
    """One embedding, of unit length: numbers, or their little-endian 32-bit floats in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """The tokens of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    data: Annotated[list[Embedding], Field(min_length=1)]
    model: str
    usage: EmbeddingUsage
