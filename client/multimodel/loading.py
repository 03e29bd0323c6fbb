"""Watches models load: what a MultiModel's models do now, as the endpoint tells it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import httpx

from multimodel.client import AsyncClient
from multimodel_api.lifecycle import ModelCard
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.state import ModelState

LOADING_INTERVAL = 0.2
SETTLED_INTERVAL = 1.0
"""Seconds between two looks, while something loads and while nothing does."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model as last seen; `card` is None until the endpoint answers.

    `seconds` is how long the present or the last load has taken, from `began` on a clock of the viewer's.
    """

    name: str
    id: str
    card: ModelCard | None = None
    began: float = 0.0
    seconds: float = 0.0

    @property
    def state(self) -> ModelState | None:
        """The model's state, None while it is unknown."""
        return self.card.status if self.card else None

    @property
    def loading(self) -> bool:
        """Whether it loads, or has not been seen yet."""
        return self.state in (None, ModelState.RELOADING)

    @property
    def stage(self) -> tuple[object, ...]:
        """What is worth a new line when it changes: the state, the phase of the load, the failure."""
        card = self.card
        phase = card.progress.phase if card and card.progress and card.status is ModelState.RELOADING else None
        return (self.state, phase, card.failure if card else None)

    def seen(self, card: ModelCard | None, *, now: float) -> "ModelView":
        """Return the view after another look; without a card the endpoint did not answer, and the last one stands."""
        after = replace(self, card=card or self.card)
        if after.loading and not self.loading:
            return replace(after, began=now, seconds=0.0)
        return replace(after, seconds=now - self.began) if self.loading else after


Views = tuple[ModelView, ...]


def unseen(spec: MultiModelSpec, *, now: float) -> Views:
    """Return the views of models that nobody has looked at yet."""
    return tuple(ModelView(name=model.name, id=model.api_id, began=now) for model in spec.models)


def settled(views: Views) -> bool:
    """Whether every model has been seen and none is loading."""
    return not any(view.loading for view in views)


async def watch(client: AsyncClient, spec: MultiModelSpec) -> AsyncIterator[Views]:
    """Yield the models' views again and again, for ever; the first ones are unseen."""
    views = unseen(spec, now=time.monotonic())
    while True:
        yield views
        await asyncio.sleep(SETTLED_INTERVAL if settled(views) else LOADING_INTERVAL)
        cards = await asyncio.gather(*(_card(client, view.id) for view in views))
        now = time.monotonic()
        views = tuple(view.seen(card, now=now) for view, card in zip(views, cards, strict=True))


async def _card(client: AsyncClient, model_id: str) -> ModelCard | None:
    try:
        return await client.model(model_id)
    except httpx.TransportError:
        return None
