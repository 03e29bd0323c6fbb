"""How a request's tokens are chosen: the request's values, then the model's generation_config.json, then defaults."""

import secrets
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field

from multimodel_api.openai import SamplingFields
from multimodel_server.engine.messages import Sampling
from multimodel_server.text.files import read_document

GREEDY_BELOW = 1e-7
"""Temperatures below this one are 0: the likeliest token, always."""

_SERVER_TEMPERATURE = 1.0

Value = TypeVar("Value")


class GenerationDefaults(BaseModel):
    """What is read of `generation_config.json`; None leaves the server's default."""

    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    eos_token_id: int | list[int] | None = None

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        if self.eos_token_id is None:
            return frozenset()
        return frozenset([self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id)


def read_defaults(model_dir: Path) -> GenerationDefaults:
    """Return the model's defaults, its end tokens taken from `config.json` when only that names them."""
    defaults = read_document(model_dir / "generation_config.json", GenerationDefaults)
    if defaults.eos_token_id is not None:
        return defaults
    config = read_document(model_dir / "config.json", _ModelConfig)
    return defaults.model_copy(update={"eos_token_id": config.eos_token_id})


class _ModelConfig(BaseModel):
    eos_token_id: int | list[int] | None = None


def sampling(
    request: SamplingFields, defaults: GenerationDefaults, *, max_tokens: int, stop_token_ids: frozenset[int]
) -> Sampling:
    """Return how to sample a request; without a seed of its own it gets a random one."""
    greedy_model = defaults.do_sample is False
    model_temperature = 0.0 if greedy_model else _first(defaults.temperature, _SERVER_TEMPERATURE)
    temperature = _first(request.temperature, model_temperature)
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(_first(request.top_k, defaults.top_k, 0), 0),
        seed=_first(request.seed, secrets.randbits(63)),
        stop_token_ids=stop_token_ids,
    )


def _first(*values: Value | None) -> Value:
    return next(value for value in values if value is not None)
