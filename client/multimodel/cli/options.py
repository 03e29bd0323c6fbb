"""Options and help texts that several commands share."""

import re
from pathlib import Path
from typing import Annotated

import httpx
import typer

from multimodel.client import API_KEY_VARIABLE, DEFAULT_URL
from multimodel_api import names


def examples(*lines: str) -> str:
    """Return the part of a help text that shows commands, line by line."""
    kept_lines = "\b"
    return "\n".join(("[bold]Examples[/bold]", "", kept_lines, *(f"  {line}" for line in lines)))


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise typer.BadParameter(f"{url!r} is no URL; write it like {DEFAULT_URL}")
    return url


def _checked_key(key: str | None) -> str | None:
    if key and not re.fullmatch(r"[!-~]+", key):
        raise typer.BadParameter("an API key has letters, digits and signs alone; copy it anew")
    return key or None


Url = Annotated[
    str,
    typer.Option("--url", envvar="MULTIMODEL_URL", help="The endpoint to talk to.", callback=_checked_url),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        metavar="KEY",
        help="The API key, where the endpoint asks for one.",
        callback=_checked_key,
    ),
]
ApiKeyFolder = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        metavar="DIR",
        help="Ask callers for one of the API keys in this folder (see multimodel keys).",
        exists=True,
        file_okay=False,
    ),
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every address of this machine.")]
Port = Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = names.ROUTER_PORT
