"""Options and help texts that several commands share."""

from typing import Annotated

import httpx
import typer

from multimodel.client import DEFAULT_URL
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


Url = Annotated[
    str,
    typer.Option("--url", envvar="MULTIMODEL_URL", help="The endpoint to talk to.", callback=_checked_url),
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every address of this machine.")]
Port = Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = names.ROUTER_PORT
