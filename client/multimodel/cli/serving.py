"""Serves models on this machine until Ctrl-C, and shows how they fare."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.live import Live

from multimodel.cli.reporting import FAILED
from multimodel.client import AsyncClient
from multimodel.display import loading_line, loading_table, serving_lines
from multimodel.loading import Views, settled, watch
from multimodel.local_router import Address, ApiKeys, check_can_start, router_command, running_router
from multimodel.manifest_file import to_yaml
from multimodel.stop_signals import StopSignals
from multimodel_api.manifest import MultiModel, MultiModelSpec
from multimodel_api.state import ModelState


def serve_resource(resource: MultiModel, address: Address, api_keys: ApiKeys | None = None) -> int:
    """Serve a MultiModel that lies in no file; otherwise as `serve_manifest`."""
    with TemporaryDirectory(prefix="multimodel-") as folder:
        manifest = Path(folder) / f"{resource.metadata.name}.yaml"
        manifest.write_text(to_yaml(resource), encoding="utf-8")
        return serve_manifest(manifest, resource.spec, address, api_keys)


def serve_manifest(manifest: Path, spec: MultiModelSpec, address: Address, api_keys: ApiKeys | None = None) -> int:
    """Serve a manifest until Ctrl-C (exit code 0), or until no model is left that could be served (1).

    Raises:
        CannotStartError: the router cannot start on this address.
        RouterEndedError: the router ended by itself.
    """
    check_can_start(address)
    command = router_command(manifest, spec.router, address, api_keys)
    return asyncio.run(_serve(command, spec, address, api_keys, Console(highlight=False)))


async def _serve(
    command: Sequence[str], spec: MultiModelSpec, address: Address, api_keys: ApiKeys | None, console: Console
) -> int:
    def log(line: str) -> None:
        console.print(line, style="dim", markup=False, soft_wrap=True)

    with StopSignals() as signals:
        async with (
            AsyncClient(address.url, api_keys.own if api_keys else None) as client,
            running_router(command, log=log, at_once=signals.at_once) as router,
        ):
            stopped = asyncio.create_task(signals.stop.wait())
            lines = partial(serving_lines, address.url, default_id=spec.default.api_id, with_key=api_keys is not None)
            shown = asyncio.create_task(_show(watch(client, spec), console, lines))
            ended = asyncio.create_task(router.ended())
            done, _ = await asyncio.wait((stopped, shown, ended), return_when=asyncio.FIRST_COMPLETED)
            await _cancel(stopped, shown, ended)
            if stopped in done:
                console.print("Stopping; Ctrl-C again stops at once.")
                return 0
            return (ended if ended in done else shown).result()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _show(looks: AsyncIterator[Views], console: Console, lines: Callable[[Views], list[str]]) -> int:
    """Show the models loading, how to use them, and each later change; return when none can be used."""
    views = await _show_loading(looks, console)
    if not _any_usable(views):
        console.print("No model could be loaded; stopping.", style="bold red")
        return FAILED
    for line in lines(views):
        console.print(line, markup=False, soft_wrap=True)
    async for new_views in looks:
        _print_changes(views, new_views, console)
        views = new_views
    return 0


async def _show_loading(looks: AsyncIterator[Views], console: Console) -> Views:
    """Show the models until none is loading any more, and return what they are then."""
    views = await anext(looks)
    if console.is_terminal:
        with Live(loading_table(views), console=console, auto_refresh=False) as live:
            while not settled(views):
                views = await anext(looks)
                live.update(loading_table(views), refresh=True)
    else:
        while not settled(views):
            before, views = views, await anext(looks)
            _print_changes(before, views, console)
    return views


def _print_changes(before: Views, now: Views, console: Console) -> None:
    for old, new in zip(before, now, strict=True):
        if old.stage != new.stage:
            console.print(loading_line(new), markup=False, soft_wrap=True)


def _any_usable(views: Views) -> bool:
    return any(view.state in (ModelState.LOADED, ModelState.UNLOADED) for view in views)
