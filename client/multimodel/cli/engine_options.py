"""The engine's settings as flags, named as mistral.rs names them, for every command that serves without a manifest."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError

from multimodel.validation import problems

Part = TypeVar("Part", bound=BaseModel)

_FLAGS = {
    "modelId": "--model",
    "inSituQuant": "--isq",
    "mode": "--paged-attn",
    "contextLen": "--pa-context-len",
    "memoryMb": "--pa-memory-mb",
    "memoryFraction": "--pa-memory-fraction",
    "blockSize": "--pa-block-size",
    "cacheType": "--pa-cache-type",
    "pagedAttention": "--pa-context-len, --pa-memory-mb, --pa-memory-fraction",
}
"""The flags whose names are not simply the manifest's field names."""


def _engine_fields(
    max_seqs: Annotated[int | None, typer.Option(help="Most sequences running at once; 32 when unset.")] = None,
    max_batched_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-batched-tokens", "--max-num-batched-tokens", help="Token budget of a step; 4096 when unset."
        ),
    ] = None,
    paged_attn: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(help="off computes equal lengths together and reserves whole contexts; auto is on."),
    ] = None,
    pa_context_len: Annotated[int | None, typer.Option(help="Size of the KV cache in tokens.")] = None,
    pa_memory_mb: Annotated[int | None, typer.Option(help="Size of the KV cache in MiB.")] = None,
    pa_memory_fraction: Annotated[float | None, typer.Option(help="Size of the KV cache, of 1.")] = None,
    pa_block_size: Annotated[int | None, typer.Option(help="Tokens in a KV block: 8, 16 or 32.")] = None,
    pa_cache_type: Annotated[
        Literal["auto", "f8e4m3"] | None,
        typer.Option(help="Elements of the KV cache; f8e4m3 takes half of bf16's room."),
    ] = None,
    prefix_cache_n: Annotated[
        int | None, typer.Option(help="0 shares no prefixes; 16 when unset. Without paged attention: the texts kept.")
    ] = None,
    no_kv_cache: Annotated[
        bool, typer.Option("--no-kv-cache", help="Compute the whole text again for each token.")
    ] = False,
    max_seq_len: Annotated[
        int | None, typer.Option(help="Longest prompt to place layers for; limits nothing; 4096 when unset.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Largest batch to place layers for; limits nothing; 1 when unset.")
    ] = None,
    num_device_layers: Annotated[
        str | None, typer.Option("--num-device-layers", "-n", help="Layers on each device: DEVICE:LAYERS;...")
    ] = None,
    dtype: Annotated[Literal["auto", "bf16", "f16", "f32"] | None, typer.Option(help="Arithmetic.")] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", "-c", help="Chat template text, or path of a file.")
    ] = None,
    jinja_explicit: Annotated[
        str | None, typer.Option("--jinja-explicit", "-j", help="Path of a Jinja file that wins over all.")
    ] = None,
) -> dict[str, Any]:
    """Return the flags as the engine settings of a manifest; what was not given is None."""
    paged_attention = {
        "mode": paged_attn,
        "contextLen": pa_context_len,
        "memoryMb": pa_memory_mb,
        "memoryFraction": pa_memory_fraction,
        "blockSize": pa_block_size,
        "cacheType": pa_cache_type,
    }
    return {
        "maxSeqs": max_seqs,
        "maxBatchedTokens": max_batched_tokens,
        "pagedAttention": paged_attention if any(value is not None for value in paged_attention.values()) else None,
        "prefixCacheN": prefix_cache_n,
        "noKvCache": no_kv_cache or None,
        "maxSeqLen": max_seq_len,
        "maxBatchSize": max_batch_size,
        "numDeviceLayers": None if num_device_layers is None else num_device_layers.split(";"),
        "dtype": dtype,
        "chatTemplate": chat_template,
        "jinjaExplicit": jinja_explicit,
    }


def with_engine_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the engine's flags; its parameter `engine` gets them as a manifest's engine settings."""
    flags = inspect.signature(_engine_fields).parameters
    own = {name: value for name, value in inspect.signature(command).parameters.items() if name != "engine"}

    @wraps(command)
    def run(**given: Any) -> None:
        engine = _engine_fields(**{name: given.pop(name) for name in flags})
        command(engine=engine, **given)

    run.__signature__ = inspect.Signature([*own.values(), *flags.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {
        name: hint
        for function in (command, _engine_fields)
        for name, hint in get_type_hints(function, include_extras=True).items()
        if name not in ("engine", "return")
    }
    return run


def checked(kind: type[Part], fields: dict[str, Any]) -> Part:
    """Return a part of a manifest made of flags; raises `typer.BadParameter` that names the flag."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        place, text = problems(error, kind)[0]
        names = [str(part) for part in place if isinstance(part, str)]
        flag = names[-1] if names else "alias"
        raise typer.BadParameter(text, param_hint=_FLAGS.get(flag, f"--{_kebab(flag)}")) from error


def _kebab(camel: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in camel)
