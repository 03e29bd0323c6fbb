"""The commands that serve on this machine: `up` a manifest, `serve` one model, `from-config` a JSON configuration."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from multimodel.cli.convert import DefaultModelId, read_configuration
from multimodel.cli.options import DEFAULT_HOST, DEFAULT_PORT, Host, Port, examples
from multimodel.cli.reporting import reported_errors
from multimodel.cli.serving import serve_manifest, serve_resource
from multimodel.labels import dns_label
from multimodel.local_router import Address
from multimodel.manifest_file import read_manifest
from multimodel.validation import problems
from multimodel_api.manifest import Metadata, Model, MultiModel, MultiModelSpec

UP_EXAMPLES = examples(
    "multimodel up examples/quickstart.yaml",
    "multimodel up models.yaml --port 8080",
    "multimodel up models.yaml --host 0.0.0.0   [dim]# reachable from other machines[/dim]",
)
SERVE_EXAMPLES = examples(
    "multimodel serve -m Qwen/Qwen3-4B",
    "multimodel serve -m ./my-model --alias mine -p 8080",
    "multimodel serve -m Qwen/Qwen3-4B --max-seqs 64 --pa-memory-fraction 0.9",
)
FROM_CONFIG_EXAMPLES = examples(
    "multimodel from-config --file config.json",
    "multimodel from-config --file config.json --default-model-id qwen3-4b",
)

_FLAGS = {
    "modelId": "--model",
    "inSituQuant": "--isq",
    "contextLen": "--pa-context-len",
    "memoryMb": "--pa-memory-mb",
    "memoryFraction": "--pa-memory-fraction",
    "blockSize": "--pa-block-size",
    "pagedAttention": "--pa-context-len, --pa-memory-mb, --pa-memory-fraction",
}
"""The flags whose names are not simply the manifest's field names."""


@reported_errors()
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A MultiModel manifest, as for kubectl apply.")],
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
) -> None:
    """Serve the models of a manifest on this machine, without a cluster, until Ctrl-C."""
    resource = read_manifest(file)
    raise typer.Exit(serve_manifest(file, resource.spec, Address(host, port)))


@reported_errors()
def from_config(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The JSON configuration.")],
    default_model_id: DefaultModelId = None,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
) -> None:
    """Serve the models of a JSON configuration of mistral.rs on this machine, until Ctrl-C."""
    resource = read_configuration(file, default_model_id=default_model_id)
    raise typer.Exit(serve_resource(resource, Address(host, port)))


@reported_errors()
def serve(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub repository (org/name), or a folder.")],
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    alias: Annotated[str | None, typer.Option(help="Id of the model in requests; else the model itself.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")] = None,
    max_seqs: Annotated[int | None, typer.Option(help="Most sequences running at once; 32 when unset.")] = None,
    max_batched_tokens: Annotated[int | None, typer.Option(help="Token budget of a step; 4096 when unset.")] = None,
    pa_context_len: Annotated[int | None, typer.Option(help="Size of the KV cache in tokens.")] = None,
    pa_memory_mb: Annotated[int | None, typer.Option(help="Size of the KV cache in MiB.")] = None,
    pa_memory_fraction: Annotated[float | None, typer.Option(help="Size of the KV cache, of 1.")] = None,
    pa_block_size: Annotated[int | None, typer.Option(help="Tokens in a KV block: 8, 16 or 32.")] = None,
    dtype: Annotated[Literal["auto", "bf16", "f16", "f32"] | None, typer.Option(help="Arithmetic.")] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", "-c", help="Chat template text, or path of a file.")
    ] = None,
    jinja_explicit: Annotated[
        str | None, typer.Option("--jinja-explicit", "-j", help="Path of a Jinja file that wins over all.")
    ] = None,
    isq: Annotated[str | None, typer.Option(help="Quantise while loading, for example Q4K.")] = None,
) -> None:
    """Serve one model on this machine, until Ctrl-C."""
    paged_attention = {
        "contextLen": pa_context_len,
        "memoryMb": pa_memory_mb,
        "memoryFraction": pa_memory_fraction,
        "blockSize": pa_block_size,
    }
    engine = {
        "maxSeqs": max_seqs,
        "maxBatchedTokens": max_batched_tokens,
        "pagedAttention": paged_attention,
        "dtype": dtype,
        "chatTemplate": chat_template,
        "jinjaExplicit": jinja_explicit,
    }
    resource = _one_model(
        {
            "name": dns_label(alias or model),
            "alias": alias,
            "plain": {"modelId": model, "revision": revision},
            "inSituQuant": isq,
            "engine": engine,
        }
    )
    raise typer.Exit(serve_resource(resource, Address(host, port)))


def _one_model(fields: dict[str, Any]) -> MultiModel:
    try:
        model = Model.model_validate(fields)
    except ValidationError as error:
        place, text = problems(error, Model)[0]
        name = str(place[-1]) if place else "alias"
        raise typer.BadParameter(text, param_hint=_FLAGS.get(name, f"--{_kebab(name)}")) from error
    return MultiModel(metadata=Metadata(name=model.name), spec=MultiModelSpec(models=[model]))


def _kebab(camel: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in camel)
