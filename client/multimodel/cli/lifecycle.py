"""`status`, `unload` and `reload`: the models of a running endpoint."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from multimodel.cli.options import ApiKey, Json, Url, examples
from multimodel.cli.reporting import FAILED, reported_errors
from multimodel.client import DEFAULT_URL, Client
from multimodel.display import ERROR_STATES, state_text, status_table
from multimodel_api import names
from multimodel_api.lifecycle import MAX_REASON, LifecycleReply, ModelCard

STATUS_EXAMPLES = examples(
    "multimodel status",
    "multimodel status qwen3-4b --json",
    "MULTIMODEL_URL=http://models.example:1234 multimodel status",
)
UNLOAD_EXAMPLES = examples(
    "multimodel unload qwen3-4b",
    'multimodel unload default --drain-seconds 60 --reason "room for the night\'s batch"',
)
RELOAD_EXAMPLES = examples("multimodel reload qwen3-4b", "multimodel reload qwen3-4b --url http://127.0.0.1:8080")


def _checked_reason(reason: str | None) -> str | None:
    if reason and len(reason) > MAX_REASON:
        raise typer.BadParameter(f"has {len(reason)} characters; at most {MAX_REASON} are kept")
    return reason


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Alias or model id; 'default' is the default one.")]

Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Why; kept with the model's status.", callback=_checked_reason)
]


@reported_errors()
def status(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Only this model.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show the models of an endpoint and their states; exit code 1 when one is in an error state."""
    with Client(url, api_key) as client:
        listed = [card.id for card in client.list_models()]
        default_id = client.model(names.DEFAULT_MODEL_ID).id if names.DEFAULT_MODEL_ID in listed else None
        wanted = [model] if model else [model_id for model_id in listed if model_id != names.DEFAULT_MODEL_ID]
        cards = [client.model(model_id) for model_id in wanted]
    if as_json:
        print(_as_json(cards, default_id))
    else:
        Console().print(status_table(cards, default_id))
    if any(card.status in ERROR_STATES for card in cards):
        raise typer.Exit(FAILED)


@reported_errors()
def unload(
    model: ModelArgument,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(min=0, metavar="S", help="How long running requests may take; else as the router says."),
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Unload a model to free its memory; its next request loads it again."""
    with Client(url, api_key) as client:
        _show(client.unload(model, drain_seconds=drain_seconds, reason=reason), as_json=as_json)


@reported_errors()
def reload(
    model: ModelArgument,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Load a model and wait until it serves."""
    with Client(url, api_key) as client:
        with Console(stderr=True).status(Text(f"loading {model}")):
            reply = client.reload(model, reason=reason)
        _show(reply, as_json=as_json)


def _show(reply: LifecycleReply, *, as_json: bool) -> None:
    if as_json:
        print(reply.model_dump_json(exclude_none=True))
    else:
        error = f": {reply.error}" if reply.error else ""
        Console(highlight=False, soft_wrap=True).print(f"{reply.model_id}: ", state_text(reply.status), error, sep="")
    if reply.status in ERROR_STATES:
        raise typer.Exit(FAILED)


def _as_json(cards: Sequence[ModelCard], default_id: str | None) -> str:
    models = [card.model_dump(mode="json", exclude_none=True) | {"default": card.id == default_id} for card in cards]
    return json.dumps({"models": models}, indent=2, ensure_ascii=False)
