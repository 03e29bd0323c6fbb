"""How the last load of each model went, as the servers that are ready tell it themselves."""

import asyncio
import contextlib
from collections.abc import Mapping

from multimodel_api.progress import LoadProgress
from multimodel_router.fleet import Endpoint, ModelView
from multimodel_router.fleet.probe import Probe

ANSWER_SECONDS = 0.5
"""The page does not wait longer for servers to tell of their load; they are asked again the next time."""


class LastLoads:
    """Asks each server once for as long as it stays ready; a load that is over does not change."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._known: dict[Endpoint, LoadProgress] = {}

    async def of(self, views: Mapping[str, ModelView]) -> dict[str, LoadProgress]:
        """Return the load of one ready server of each model, by the model's name, where it is known."""
        shown = {name: view.ready[0] for name, view in views.items() if view.ready}
        self._known = {endpoint: self._known[endpoint] for endpoint in shown.values() if endpoint in self._known}
        unknown = [endpoint for endpoint in shown.values() if endpoint not in self._known]
        if unknown:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await asyncio.gather(*map(self._ask, unknown))
        return {name: self._known[endpoint] for name, endpoint in shown.items() if endpoint in self._known}

    async def _ask(self, endpoint: Endpoint) -> None:
        progress = await self._probe.progress(endpoint)
        if progress:
            self._known[endpoint] = progress
