"""The commands that serve on this machine: `up` a manifest, `serve` one model, `from-config` a JSON configuration."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multimodel.cli.convert import DefaultModelId, read_configuration
from multimodel.cli.engine_options import checked, with_engine_flags
from multimodel.cli.options import DEFAULT_HOST, DEFAULT_PORT, ApiKey, ApiKeyFolder, Host, Port, examples
from multimodel.cli.reporting import reported_errors, show_warning
from multimodel.cli.serving import serve_manifest, serve_resource
from multimodel.client import API_KEY_VARIABLE
from multimodel.labels import dns_label
from multimodel.local_router import Address, ApiKeys
from multimodel.manifest_file import read_manifest
from multimodel_api.manifest import EngineSettings, Metadata, Model, MultiModel, MultiModelSpec
from multimodel_api.router_spec import RouterSpec

UP_EXAMPLES = examples(
    "multimodel up examples/quickstart.yaml",
    "multimodel up models.yaml --port 8080",
    "multimodel up models.yaml --host 0.0.0.0 --api-keys keys   [dim]# reachable from other machines, with keys[/dim]",
)
SERVE_EXAMPLES = examples(
    "multimodel serve -m Qwen/Qwen3-4B",
    "multimodel serve -m ./my-model --alias mine -p 8080",
    "multimodel serve -m Qwen/Qwen3-4B --max-seqs 64 --pa-memory-fraction 0.9",
)
FROM_CONFIG_EXAMPLES = examples(
    "multimodel from-config --file config.json",
    "multimodel from-config --file config.json --default-model-id qwen3-4b",
    "multimodel from-config --file config.json --max-seqs 64 --prefix-cache-n 32",
)


def _keys(folder: Path | None, own: str | None) -> ApiKeys | None:
    if folder is None:
        return None
    if own is None:
        raise typer.BadParameter(
            f"this command too needs a key, to watch the models: `multimodel keys new me --folder {folder}` makes one; "
            f"set {API_KEY_VARIABLE} to it",
            param_hint="--api-keys",
        )
    return ApiKeys(folder, own)


def _meant_for_a_cluster(router: RouterSpec, api_keys: Path | None) -> list[str]:
    return [
        *(["apiKeys"] if router.api_keys and api_keys is None else []),
        *(["tls"] if router.tls else []),
    ]


@reported_errors()
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A MultiModel manifest, as for kubectl apply.")],
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    api_keys: ApiKeyFolder = None,
    api_key: ApiKey = None,
) -> None:
    """Serve the models of a manifest on this machine, without a cluster, until Ctrl-C."""
    resource = read_manifest(file)
    for field in _meant_for_a_cluster(resource.spec.router, api_keys):
        show_warning(f"{file}: spec.router.{field} names a Secret of a cluster, and has no effect here")
    raise typer.Exit(serve_manifest(file, resource.spec, Address(host, port), _keys(api_keys, api_key)))


@with_engine_flags
@reported_errors()
def from_config(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="The JSON configuration.")],
    engine: dict[str, Any],
    default_model_id: DefaultModelId = None,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    api_keys: ApiKeyFolder = None,
    api_key: ApiKey = None,
) -> None:
    """Serve the models of a JSON configuration of mistral.rs on this machine, until Ctrl-C.

    The engine's flags hold for every model; what the configuration says of one model wins.
    """
    defaults = checked(EngineSettings, engine)
    resource = read_configuration(file, default_model_id=default_model_id)
    spec = resource.spec.model_copy(update={"engine": defaults})
    raise typer.Exit(
        serve_resource(resource.model_copy(update={"spec": spec}), Address(host, port), _keys(api_keys, api_key))
    )


@with_engine_flags
@reported_errors()
def serve(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub repository (org/name), or a folder.")],
    engine: dict[str, Any],
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    api_keys: ApiKeyFolder = None,
    api_key: ApiKey = None,
    alias: Annotated[str | None, typer.Option(help="Id of the model in requests; else the model itself.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")] = None,
    isq: Annotated[str | None, typer.Option(help="Quantise while loading, for example Q4K.")] = None,
) -> None:
    """Serve one model on this machine, until Ctrl-C."""
    fields = {
        "name": dns_label(alias or model),
        "alias": alias,
        "plain": {"modelId": model, "revision": revision},
        "inSituQuant": isq,
        "engine": engine,
    }
    one = checked(Model, fields)
    resource = MultiModel(metadata=Metadata(name=one.name), spec=MultiModelSpec(models=[one]))
    raise typer.Exit(serve_resource(resource, Address(host, port), _keys(api_keys, api_key)))
