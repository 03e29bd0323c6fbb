"""Turns the errors that people can cause into one clear line and an exit code: 2 for wrong input, 1 for the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx
import typer
from rich.console import Console

from multimodel.client import API_KEY_VARIABLE, MultiModelError
from multimodel.convert import ConversionError
from multimodel.local_router import CannotStartError, RouterEndedError
from multimodel.manifest_file import ManifestError

FAILED = 1
WRONG_INPUT = 2


@contextmanager
def reported_errors() -> Iterator[None]:
    """Report the errors raised inside, as a block or as a command's decorator."""
    try:
        yield
    except (ManifestError, ConversionError, CannotStartError) as error:
        raise _reported(str(error), WRONG_INPUT) from error
    except MultiModelError as error:
        hint = f" Pass it with --api-key, or set {API_KEY_VARIABLE}." if error.status == HTTPStatus.UNAUTHORIZED else ""
        raise _reported(f"{error}{hint}", FAILED) from error
    except RouterEndedError as error:
        raise _reported(str(error), FAILED) from error
    except httpx.TransportError as error:
        raise _reported(_unreachable(error), FAILED) from error


def show_error(message: str) -> None:
    """Print each line of a message to standard error, marked as an error."""
    _print_marked(message, "error", "bold red")


def show_warning(message: str) -> None:
    """Print each line of a message to standard error, marked as a warning."""
    _print_marked(message, "warning", "bold yellow")


def _reported(message: str, exit_code: int) -> typer.Exit:
    show_error(message)
    return typer.Exit(exit_code)


def _print_marked(message: str, mark: str, style: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in message.splitlines():
        console.print(f"{mark}:", style=style, end=" ")
        console.print(line, markup=False)


def _unreachable(error: httpx.TransportError) -> str:
    origin = error.request.url.copy_with(path="/")
    return (
        f"no answer from {origin}: {error}. Start an endpoint with 'multimodel up FILE', "
        f"or name a running one with --url or MULTIMODEL_URL"
    )
