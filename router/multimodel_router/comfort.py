"""What a waiting client hears: that its model loads, and how far it is, so that no proxy in between gives up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from multimodel_api.manifest import Model
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_router.fleet import Fleet, ModelView
from multimodel_router.http1.reply import JSON, Reply

STREAM_AFTER = 1.0
"""Seconds of waiting after which a stream begins with comments."""

WHOLE_AFTER = 20.0
"""Seconds of waiting after which a JSON answer begins with white space: its status is 200 from then on."""

EVERY = 10.0
"""Seconds between two signs of life when nothing changes."""

OPT_OUT = b"x-multimodel-progress"
"""A request with this header set to `off` gets nothing before its answer."""

EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")

_PHASES = {
    LoadPhase.STARTING: "starting the model server",
    LoadPhase.DOWNLOADING: "downloading",
    LoadPhase.READING_WEIGHTS: "reading weights",
    LoadPhase.WARMING_UP: "warming up",
    LoadPhase.READY: "almost ready",
}


@contextlib.asynccontextmanager
async def comforting(fleet: Fleet, model: Model, reply: Reply, *, stream: bool) -> AsyncIterator[None]:
    """Tell the client how the load goes for as long as the block runs."""
    telling = asyncio.create_task(_tell(fleet, model, reply, stream=stream))
    try:
        yield
    finally:
        telling.cancel()


async def _tell(fleet: Fleet, model: Model, reply: Reply, *, stream: bool) -> None:
    await asyncio.sleep(STREAM_AFTER if stream else WHOLE_AFTER)
    if not reply.started:
        begin(reply, stream=stream)
    while True:
        if stream:
            told = describe(model, fleet.view(model.name))
            reply.pad(f": {told}\n\n".encode())
            await _next_news(fleet, model, told)
        else:
            reply.pad(b" ")
            await asyncio.sleep(EVERY)


def begin(reply: Reply, *, stream: bool) -> None:
    """Write the head of an answer whose outcome is not known yet."""
    headers = [EVENT_STREAM, (b"cache-control", b"no-cache")] if stream else [JSON]
    reply.start(200, headers)


async def _next_news(fleet: Fleet, model: Model, told: str) -> None:
    """Return when there is something new to say, or it is time for a sign of life."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EVERY):
            while describe(model, fleet.view(model.name)) == told:
                await fleet.changed()


def describe(model: Model, view: ModelView) -> str:
    """Return how a load goes, in one line; pure."""
    if view.ready:
        return f"{model.api_id} is ready"
    if view.progress is None:
        return f"loading {model.api_id}: {view.waits_for or 'starting'}"
    return f"loading {model.api_id}: {_phase(view.progress)}"


def _phase(progress: LoadProgress) -> str:
    words = _PHASES.get(progress.phase, str(progress.phase))
    if not progress.bytes_total:
        return words
    unit, size = ("GB", 1e9) if progress.bytes_total >= 1e9 else ("MB", 1e6)
    return f"{words}, {progress.bytes_done / size:.1f} of {progress.bytes_total / size:.1f} {unit}"
