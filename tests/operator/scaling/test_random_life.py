"""Applies, edits, unloads, requests and kills in any order, on a real API server, against what must always hold.

Test_residency_world tries far more orders of far more steps, with the decisions alone; here everything acts that the
operator consists of, and what it writes is what counts.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from multimodel_api import names

pytestmark = pytest.mark.control_plane

MODELS = ("a", "b", "c")
STEPS = 30
EDITED_SECONDS = 5.0
"""For so long after an edit of the limit, the earlier one may still be acted upon."""
SEEN_SECONDS = 1.5
"""A request that began so long ago is in every sample."""


class Life:
    """One MultiModel, and what is known of it from what was done to it: the reference."""

    def __init__(self, namespace: Any, model: Any, router: Any, kubelet: Any) -> None:
        self.namespace = namespace
        self.router = router
        self.kubelet = kubelet
        self.history: list[str] = []
        self.wrong: list[str] = []
        self.listed: dict[str, dict[str, Any]] = {name: model(name) for name in MODELS[:2]}
        self.limits: list[tuple[float, int | None]] = [(time.monotonic(), 1)]
        self.requests: list[asyncio.Task[None]] = []
        self.waiting: dict[str, list[float]] = {name: [] for name in MODELS}
        """Since when each request of a model is in flight."""
        self.unloaded = dict.fromkeys(MODELS, 0.0)
        """When a model was last unloaded by command: a scale to 0 leaves no trace of who did it."""
        self._make_model = model
        self._holders: set[str] = set()
        self._replicas: dict[str, int] = {}
        namespace.multimodel(*self.listed.values(), residency={"maxLoaded": 1}, router={"replicas": 1})
        kubelet.looked = self._look

    def edit(self, words: str, **spec: Any) -> None:
        self.history.append(words)
        models = list(self.listed.values())
        path = self.namespace.path("multimodels", "mm")
        self.namespace.patch(path, {"spec": {"models": models, **spec}})

    def limit(self, most: int | None) -> None:
        self.limits.append((time.monotonic(), most))
        self.edit(f"at most {most} loaded", residency={"maxLoaded": most})

    def change(self, name: str, number: int) -> None:
        if name in self.listed:
            self.listed[name] = self._make_model(name, engine={"maxSeqs": number})
            self.edit(f"{name} with {number} sequences")

    def remove(self, name: str) -> None:
        if len(self.listed) > 1 and self.listed.pop(name, None):
            self.edit(f"no {name} any more")

    def add(self, name: str, fewest: int) -> None:
        self.listed.setdefault(name, self._make_model(name, scaling={"minReplicas": fewest}))
        self.edit(f"with {name}")

    def unload(self, name: str) -> None:
        self.history.append(f"unload {name}")
        self.unloaded[name] = time.monotonic()
        self._scale(name, 0)

    def kill(self, choose: random.Random) -> None:
        running = [
            pod["metadata"]["name"] for pod in self.kubelet.pods if names.LABEL_MODEL in pod["metadata"]["labels"]
        ]
        if running:
            pod = choose.choice(running)
            self.history.append(f"kill {pod}")
            path = self.namespace.path("pods", pod)
            self.namespace.client.delete(path, params={"gracePeriodSeconds": "0"})

    def ask(self, name: str, seconds: float) -> None:
        self.history.append(f"ask {name} for {seconds:.1f} s")
        self.requests.append(asyncio.create_task(self._request(name, seconds)))

    async def _request(self, name: str, seconds: float) -> None:
        """Do as a router does: wake the model, wait, and begin anew where the server is killed."""
        began = time.monotonic()
        self.waiting[name].append(began)
        with self.router.requests(name, 1):
            while name in self.listed and not await self._served(name, seconds):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        self.waiting[name].remove(began)

    async def _served(self, name: str, seconds: float) -> bool:
        pod = next((pod["metadata"]["name"] for pod in self.kubelet.pods if _serves(pod, name)), None)
        if pod is None:
            await asyncio.to_thread(self._wake, name)
            return False
        self.kubelet.work[pod] += 1
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await asyncio.sleep(0.1)
                if pod not in {running["metadata"]["name"] for running in self.kubelet.pods}:
                    return False
        finally:
            self.kubelet.work[pod] -= 1
        return True

    def _wake(self, name: str) -> None:
        with suppress(httpx.HTTPStatusError):  # it is not made yet, or not listed any more
            if self._deployment(name)["spec"]["replicas"] == 0:
                self._scale(name, 1)

    def _scale(self, name: str, replicas: int) -> None:
        with suppress(AssertionError):
            self.namespace.scale(f"mm-model-{name}", replicas)

    def _deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.namespace.get("deployments", f"mm-model-{name}")
        return found

    def _look(self, pods: list[dict[str, Any]]) -> None:
        """Hold what is seen against what must always hold; called from the kubelet's thread."""
        labelled = [pod for pod in pods if names.LABEL_MODEL in pod["metadata"]["labels"]]
        holders = {pod["metadata"]["labels"][names.LABEL_MODEL] for pod in labelled if not _is_gated(pod)}
        most = self._most_allowed()
        if most is not None and len(holders) > max(most, len(self._holders)):
            self.wrong.append(f"{holders} are loaded where {most} may be, after {self.history}")
        self._holders = holders
        deployments = self.namespace.all("deployments", labelSelector=names.LABEL_MODEL)
        replicas = {d["metadata"]["labels"][names.LABEL_MODEL]: d["spec"]["replicas"] for d in deployments}
        for name in replicas:
            if self._replicas.get(name, 0) > replicas[name] == 0:
                self._look_at_unload(name)
        self._replicas = replicas

    def _look_at_unload(self, name: str) -> None:
        """Nobody but who commands it may unload a model that has work."""
        now = time.monotonic()
        oldest = min(self.waiting[name], default=now)
        if now - oldest > SEEN_SECONDS and now - self.unloaded[name] > SEEN_SECONDS:
            self.wrong.append(f"{name} is unloaded with a request in flight, after {self.history}")

    def _most_allowed(self) -> int | None:
        recent = [most for since, most in self.limits[:-1] if self._until(since) > time.monotonic() - EDITED_SECONDS]
        allowed = [*recent, self.limits[-1][1]]
        return None if None in allowed else max(most for most in allowed if most is not None)

    def _until(self, since: float) -> float:
        """Return until when a limit counted that came at `since`."""
        return min(later for later, _ in self.limits if later > since)

    def is_told(self) -> bool:
        """Whether all is settled, and the status says of each model what the cluster shows."""
        told = self.namespace.status()
        if self.namespace.condition("Progressing")["status"] != "False":
            return False
        shown = {model["name"]: (model["state"], model["replicas"], model["readyReplicas"]) for model in told["models"]}
        return shown == self._world() and self.namespace.condition("Ready")["status"] == "True"

    def _world(self) -> dict[str, tuple[str, int, int]]:
        world = {}
        for deployment in self.namespace.all("deployments", labelSelector=names.LABEL_MODEL):
            ready = deployment.get("status", {}).get("readyReplicas", 0)
            name, replicas = deployment["metadata"]["labels"][names.LABEL_MODEL], deployment["spec"]["replicas"]
            world[name] = ("loaded" if ready else "unloaded", replicas, ready)
        return world


def _serves(pod: dict[str, Any], model: str) -> bool:
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    return (
        ready
        and "deletionTimestamp" not in pod["metadata"]
        and pod["metadata"]["labels"].get(names.LABEL_MODEL) == model
    )


def _is_gated(pod: dict[str, Any]) -> bool:
    return any(gate["name"] == names.RESIDENCY_GATE for gate in pod["spec"].get("schedulingGates", []))


async def live(life: Life, choose: random.Random) -> None:
    """Take random steps; requests come most often."""
    steps: list[Callable[[], None]] = [
        *[lambda: life.ask(choose.choice(MODELS), choose.uniform(0.2, 6.0))] * 6,
        lambda: life.unload(choose.choice(MODELS)),
        lambda: life.kill(choose),
        lambda: life.change(choose.choice(MODELS), choose.randint(2, 9)),
        lambda: life.limit(choose.choice([1, 2, 2, None])),
        lambda: life.remove(choose.choice(MODELS)),
        lambda: life.add(choose.choice(MODELS), choose.randint(0, 1)),
    ]
    for _ in range(STEPS):
        choose.choice(steps)()
        await asyncio.sleep(choose.uniform(0, 0.8))


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_happens(
    namespace: Any,
    model: Any,
    router: Any,
    kubelet: Any,
    scaling: Any,
    until: Callable[..., Awaitable[None]],
    seed: int,
) -> None:
    life = Life(namespace, model, router, kubelet)
    async with scaling():
        await until("the models are made", lambda: len(namespace.all("deployments")) == 3)
        await live(life, random.Random(seed))
        _, left = await asyncio.wait(life.requests, timeout=90)
        assert not left, f"{len(left)} requests have no end, after {life.history}\n{namespace.status()}"
        await until(f"the status says what is, after {life.history}", life.is_told)
    assert life.wrong == []
    assert set(life._world()) == set(life.listed)
