"""`keys`: makes the API keys that routers ask for."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from multimodel.cli.options import examples
from multimodel.key_entries import entry_document, secret_manifest, write_entry
from multimodel_api.keys import ANONYMOUS, ANY_MODEL, KEY_NAME, MAX_KEY_NAME, Action, KeyEntry, key_hash, new_key

NEW_EXAMPLES = examples(
    "multimodel keys new alice --secret chat-keys | kubectl apply --server-side --field-manager=alice -f -",
    "multimodel keys new ops --actions infer,manage --folder keys   [dim]# for multimodel up --api-keys keys[/dim]",
    "multimodel keys new bob --models qwen3-4b,words",
)

app = typer.Typer(no_args_is_help=True, help="Make the API keys that a router asks for.")


def _checked_name(name: str) -> str:
    if name == ANONYMOUS or len(name) > MAX_KEY_NAME or not re.fullmatch(KEY_NAME, name):
        raise typer.BadParameter(f"{name!r} cannot name a key; use letters, digits, '-', '_' and '.', such as alice")
    return name


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@app.callback()
def keys() -> None:
    """Make the API keys that a router asks for."""


@app.command("new", epilog=NEW_EXAMPLES)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use the key.", callback=_checked_name)],
    models: Annotated[str, typer.Option(metavar="IDS", help="API ids of the models it may use; * is all.")] = ANY_MODEL,
    actions: Annotated[
        str,
        typer.Option(metavar="ACTIONS", help="infer to ask models, manage to load and unload them, or infer,manage."),
    ] = Action.INFER.value,
    secret: Annotated[
        str | None,
        typer.Option(metavar="SECRET", help="Print a Secret of this name for kubectl, with the key's entry."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the key's entry into this folder.", file_okay=False)
    ] = None,
) -> None:
    """Make a key, and print it this once: an entry holds its digest alone, which routers compare with.

    The key goes to standard output; with --secret to standard error, beside the manifest.
    """
    if secret is not None and folder is not None:
        raise typer.BadParameter("choose one of --secret and --folder", param_hint="--folder")
    key = new_key()
    entry = _entry(key, models, actions)
    if secret is not None:
        print(secret_manifest(secret, name, entry), end="")
        print(f"The key of {name}, shown this once:\n{key}", file=sys.stderr)
        return
    file = _written(folder, name, entry) if folder is not None else None
    print(key)
    if file is None:
        print(entry_document(entry))
    print(f"The key of {name}, shown this once; its entry is {file or 'the second line'}.", file=sys.stderr)


def _entry(key: str, models: str, actions: str) -> KeyEntry:
    try:
        return KeyEntry.model_validate({"hash": key_hash(key), "models": _words(models), "actions": _words(actions)})
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        raise typer.BadParameter(
            f"{wrong['msg']} (found {wrong['input']!r})", param_hint=f"--{wrong['loc'][0]}"
        ) from error


def _written(folder: Path, name: str, entry: KeyEntry) -> Path:
    try:
        return write_entry(folder, name, entry)
    except FileExistsError as error:
        raise typer.BadParameter(
            f"{folder / name} exists; delete it, or use another name", param_hint="NAME"
        ) from error
    except OSError as error:
        raise typer.BadParameter(
            f"{folder / name} cannot be written: {error.strerror}", param_hint="--folder"
        ) from error
