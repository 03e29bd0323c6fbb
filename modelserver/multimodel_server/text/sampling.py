"""How a request's tokens are chosen: the request's values, then the model's generation_config.json, then defaults."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field

from multimodel_api.openai import SamplingFields
from multimodel_server.engine.messages import Dry, Sampling
from multimodel_server.text.files import read_document
from multimodel_server.text.structure import wanted_grammar
from multimodel_server.text.tokenizer import TextTokenizer

GREEDY_BELOW = 1e-7
"""Temperatures below this one are 0: the likeliest token, always."""
DRY_SEQUENCE_BREAKERS = ("\n", ":", '"', "*")

_SERVER_TEMPERATURE = 1.0

Value = TypeVar("Value")


class GenerationDefaults(BaseModel):
    """What is read of `generation_config.json`; None leaves the server's default."""

    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
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
    request: SamplingFields,
    defaults: GenerationDefaults,
    tokenizer: TextTokenizer,
    *,
    max_tokens: int,
    stop_token_ids: frozenset[int],
    logprobs: int | None = None,
) -> Sampling:
    """Return how to sample a request; without a seed of its own it gets a random one.

    `stop_token_ids` are the model's: `ignore_eos` leaves them out, but not those of the request. Raises `ApiError`.
    """
    greedy_model = defaults.do_sample is False
    model_temperature = 0.0 if greedy_model else _first(defaults.temperature, _SERVER_TEMPERATURE)
    temperature = _first(request.temperature, model_temperature)
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(_first(request.top_k, defaults.top_k, 0), 0),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        presence_penalty=_first(request.presence_penalty, 0.0),
        frequency_penalty=_first(request.frequency_penalty, 0.0),
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        dry=_dry(request, tokenizer),
        logit_bias=request.logit_bias or {},
        seed=_first(request.seed, secrets.randbits(63)),
        stop_token_ids=frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else stop_token_ids),
        grammar=wanted_grammar(request),
        logprobs=logprobs,
    )


def _dry(request: SamplingFields, tokenizer: TextTokenizer) -> Dry | None:
    """Return the DRY penalty, if there is to be one."""
    if not request.dry_multiplier:
        return None
    breakers = _first(request.dry_sequence_breakers, DRY_SEQUENCE_BREAKERS)
    return Dry(
        multiplier=request.dry_multiplier,
        base=_first(request.dry_base, 1.75),
        allowed_length=_first(request.dry_allowed_length, 2),
        sequence_breaker_ids=_last_tokens(breakers, tokenizer),
    )


def _last_tokens(texts: Sequence[str], tokenizer: TextTokenizer) -> frozenset[int]:
    """Return the last token of each text, as it stands within a sentence: that is how DRY finds its breakers."""
    return frozenset(tokenizer.encode_rendered(f"a{text}")[-1] for text in texts)


def _first(*values: Value | None) -> Value:
    return next(value for value in values if value is not None)
