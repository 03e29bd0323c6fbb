"""Asks a model server, once for each load, how long the parts of it took: nobody else knows."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.progress import LoadProgress
from multimodel_operator.inquiries import Inquiries
from multimodel_operator.objects import Key
from multimodel_operator.timeline import Reports, Run

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 3.0
KEEP_SECONDS = 600.0
"""The status remembers a load; this is for one whose status could not be written."""


@dataclass(frozen=True)
class Report:
    """What a server said; None where it did not answer."""

    progress: LoadProgress | None


class LoadReports:
    """What servers that have loaded say of it; `changed` is called with the MultiModel whose server has said it."""

    def __init__(self, changed: Callable[[Key], None], port: int = names.MODEL_SERVER_PORT) -> None:
        self._inquiries: Inquiries[Run, Report] = Inquiries(self._ask, changed, lambda _: KEEP_SECONDS)
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    def of(self, key: Key, runs: Iterable[Run]) -> Reports:
        """Return what is known of these runs, and ask for the rest; a pod without an address cannot be asked."""
        found = {run: self._inquiries.answer(run, key) if run.address else Report(None) for run in runs}
        return {run: report.progress for run, report in found.items() if report is not None}

    async def run(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as self._session:
            await self._inquiries.run()

    async def _ask(self, run: Run) -> Report:
        if self._session is None or run.address is None:
            return Report(None)
        host = f"[{run.address}]" if ":" in run.address else run.address
        url = f"http://{host}:{self._port}{names.PROGRESS_PATH}"
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                return Report(LoadProgress.model_validate_json(await response.read()))
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            logger.info("pod %s does not tell how it loaded: %r", run.pod, error)
            return Report(None)
