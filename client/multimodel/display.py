"""How models look in a terminal: from states to text and tables, without printing anything."""

import json
import shlex
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from multimodel.client import API_KEY_VARIABLE
from multimodel.loading import ModelView, Views
from multimodel_api.lifecycle import ModelCard
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.state import ModelState

ERROR_STATES = (ModelState.INTERNAL_ERROR, ModelState.NO_LOADER_CONFIG, ModelState.NOT_FOUND)

_STYLES = {ModelState.LOADED: "green", ModelState.RELOADING: "yellow", ModelState.UNLOADED: "dim"}
_NEVER_LOADED = (ModelState.UNLOADED, ModelState.NO_LOADER_CONFIG)
_NO_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
_BAR_WIDTH = 24
_MAX_EXAMPLES = 3
_NEXT_REQUEST_LOADS = "the next request loads it"
_NOT_LOADABLE = "this kind of source cannot be loaded"


def loading_table(views: Views) -> Table:
    """Return the table of models that load: name, id, state, phase with its progress, seconds."""
    table = Table("model", "id", "state", "phase", title_justify="left")
    table.add_column("seconds", justify="right")
    for view in views:
        seconds = "" if view.state in _NEVER_LOADED else f"{view.seconds:.1f}"
        table.add_row(Text(view.name), Text(view.id), state_text(view.state), _phase(view), seconds)
    return table


def loading_line(view: ModelView) -> str:
    """Return the one-line form of a model that loads, for output that is no terminal."""
    match view.state:
        case None:
            return f"{view.id}: waiting for the router"
        case ModelState.RELOADING:
            return f"{view.id}: {view.state}, {_phase_name(view.card)} ({view.seconds:.1f} s)"
        case ModelState.LOADED:
            return f"{view.id}: {view.state} ({view.seconds:.1f} s)"
        case _:
            return ": ".join(part for part in (view.id, str(view.state), _remark(view)) if part)


def status_table(cards: Sequence[ModelCard], default_id: str | None) -> Table:
    """Return the table of models and their states; the default one carries a mark."""
    table = Table("id", "status", "default")
    if any(card.failure for card in cards):
        table.add_column("failure")
    for card in cards:
        mark = "✓" if card.id == default_id else ""
        failure = [Text(str(card.failure))] if card.failure else []
        table.add_row(Text(card.id), state_text(card.status), mark, *failure)
    return table


def printable(text: str) -> str:
    """Return a model's text without the control characters that could steer the terminal it is shown in."""
    return text.translate(_NO_CONTROLS)


def state_text(state: ModelState | None) -> Text:
    """Return a state in its colour; errors are red."""
    return Text(str(state or "starting"), style=_STYLES.get(state, "red") if state else "dim")


def serving_lines(url: str, views: Views, default_id: str, *, with_key: bool = False) -> list[str]:
    """Return what to tell once models are served: the URL, and commands that work as they stand.

    `with_key` is whether callers need a key, which a shell then takes from the environment.
    """
    curl = f'curl -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if with_key else "curl"
    loaded = [view.id for view in views if view.state is ModelState.LOADED]
    usable = [view.id for view in views if view.state not in ERROR_STATES]
    first_default = sorted(loaded or usable, key=lambda model_id: model_id != default_id)
    return [
        f"{len(loaded)} of {len(views)} models loaded; OpenAI endpoint: {url}/v1",
        "",
        f"{curl} {url}/v1/models",
        *(chat_command(url, model_id, curl) for model_id in first_default[:_MAX_EXAMPLES]),
        f"multimodel chat --url {url}",
        "",
        "Ctrl-C stops everything.",
    ]


def chat_command(url: str, model_id: str, curl: str = "curl") -> str:
    """Return a line that chats with a model, beginning with `curl`."""
    body = json.dumps({"model": model_id, "messages": [{"role": "user", "content": "Hello!"}]}, ensure_ascii=False)
    return f"{curl} {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _phase(view: ModelView) -> RenderableType:
    if view.state is not ModelState.RELOADING or view.card is None:
        return Text(_remark(view))
    progress = view.card.progress
    name = Text(_phase_name(view.card))
    return Group(name, _bar(progress)) if progress and progress.bytes_total else name


def _bar(progress: LoadProgress) -> Table:
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.bytes_total, completed=progress.bytes_done, width=_BAR_WIDTH)
    row.add_row(bar, f"{decimal(progress.bytes_done)} of {decimal(progress.bytes_total)}")
    return row


def _phase_name(card: ModelCard | None) -> str:
    phase = card.progress.phase if card and card.progress else LoadPhase.STARTING
    return phase.replace("_", " ")


def _remark(view: ModelView) -> str:
    """Return what a state needs beside its name: the typed failure, or what happens next."""
    if view.card and view.card.failure:
        return str(view.card.failure)
    remarks = {ModelState.UNLOADED: _NEXT_REQUEST_LOADS, ModelState.NO_LOADER_CONFIG: _NOT_LOADABLE}
    return remarks.get(view.state, "") if view.state else ""
