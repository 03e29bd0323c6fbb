"""Looks up what the fit check needs: models' files on the Hub, and the GPUs that nodes have."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from multimodel_api.manifest import MultiModelSpec
from multimodel_operator import objects
from multimodel_operator.errors import OperatorError
from multimodel_operator.fit import GPU, GPU_MEMORY_LABEL, Fit, fit
from multimodel_operator.inquiries import Inquiries
from multimodel_operator.model_files import HubFiles
from multimodel_operator.objects import Key, Kind, Object

logger = logging.getLogger(__name__)

NODES_SECONDS = 120.0
EVERY_GPU_NODE = GPU_MEMORY_LABEL


class Lister(Protocol):
    """Where nodes are listed."""

    async def list(self, kind: Kind, namespace: str | None, labels: str) -> tuple[Sequence[Object], str]:
        """Return the objects that a label selector finds, and the version of the list; raises OperatorError."""


class FitCheck:
    """Whether models fit their devices; without a Hub `endpoint` nothing is looked at.

    `changed` is called with the MultiModel of which more is known now.
    """

    def __init__(self, endpoint: str, lister: Lister, changed: Callable[[Key], None]) -> None:
        self._lister = lister
        self._files = HubFiles(endpoint, changed) if endpoint else None
        self._nodes: Inquiries[str, tuple[Object, ...]] = Inquiries(self._list_nodes, changed, lambda _: NODES_SECONDS)

    def of(self, key: Key, spec: MultiModelSpec) -> Mapping[str, Fit]:
        """Return, by the names of models, whether they fit."""
        if self._files is None:
            return {}
        loadable = [model for model in spec.models if model.loadable]
        wants_gpu = any(GPU in model.resources.limits for model in loadable)
        nodes = self._nodes.answer(EVERY_GPU_NODE, key) if wants_gpu else None
        return {model.name: fit(model, spec.engine_of(model), self._files.of(key, model), nodes) for model in loadable}

    async def run(self) -> None:
        """Look things up until cancelled."""
        if self._files is not None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._files.run())
                tasks.create_task(self._nodes.run())

    async def _list_nodes(self, labels: str) -> tuple[Object, ...]:
        try:
            found, _ = await self._lister.list(objects.NODE, None, labels)
        except OperatorError as error:
            logger.info("the memory of GPUs is not known: %s", error)
            return ()
        return tuple({"metadata": {"labels": node["metadata"].get("labels", {})}} for node in found)
