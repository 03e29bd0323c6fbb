"""The life of the process: listen at once, load, serve, drain when told to stop, and exit with a meaning."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_server.app import create_app
from multimodel_server.config import ServerConfig
from multimodel_server.errors import LoadError
from multimodel_server.service import ModelService

logger = logging.getLogger(__name__)

STOPPED = 0
FAILED = 1

_KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections, so that it is never we who close one just as it is used."""
_CLOSE_SECONDS = 2


def run(config: ServerConfig) -> int:
    """Serve until told to stop; return the status to exit with.

    The event loop is left open: closing it would wait for threads that may be deep in a template or a download.
    """
    return asyncio.Runner(loop_factory=uvicorn.Config(app="", log_config=None).get_loop_factory()).run(_serve(config))


async def _serve(config: ServerConfig) -> int:
    service = ModelService(config)
    try:
        listener = _listen(config.host, config.port)
    except OSError as error:
        service.record(_cannot_listen(config, error))
        return FAILED
    server = _Server(_http_config(service))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stop, hurry = _stop_signals()
    loading = asyncio.create_task(_load(service))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and not loading.result():
        status = FAILED
    else:
        await stopped
        status = STOPPED
        await _drain(service, hurry)
    loading.cancel()
    await service.close()
    server.should_exit = True
    await serving
    return status


async def _load(service: ModelService) -> bool:
    """Load the model; a failure is recorded, and False returned."""
    try:
        await service.load()
    except LoadError as error:
        service.record(error.failure)
    except Exception as error:
        logger.exception("Loading failed in a way that nobody foresaw")
        message = f"Loading failed: {type(error).__name__}: {error}"
        service.record(LoadFailure(reason=FailureReason.ENGINE_CRASHED, message=message))
    else:
        logger.info("Ready to serve %s", service.config.api_id)
        return True
    return False


async def _drain(service: ModelService, hurry: asyncio.Event) -> None:
    """Let running requests end, for as long as the settings allow or until a second signal."""
    logger.info("Stopping; running requests have %g s to end", service.config.drain_seconds)
    draining = asyncio.create_task(service.drain(service.config.drain_seconds))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, hurried):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return events that are set by the first and by the second SIGTERM or SIGINT."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, hurry


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, and log its address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    address = f"[{host}]" if ":" in host else host
    logger.info("Listening on http://%s:%d", address, listener.getsockname()[1])
    return listener


def _cannot_listen(config: ServerConfig, error: OSError) -> LoadFailure:
    message = f"Cannot listen on {config.host}, port {config.port}: {error.strerror}; choose others (--host, --port)."
    return LoadFailure(reason=FailureReason.BAD_CONFIGURATION, message=message)


def _http_config(service: ModelService) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: it would close the door at once, but we refuse politely first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
