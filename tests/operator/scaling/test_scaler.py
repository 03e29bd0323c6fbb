"""Scaling by load, unloading when idle and taking turns, over a real API server; routers are pages of real metrics."""

import time
from typing import Any

import pytest

from multimodel_api import names
from multimodel_operator.scaler import Timing

pytestmark = pytest.mark.control_plane


def reasons(namespace: Any) -> set[str]:
    return {event["reason"] for event in namespace.own_events()}


def waits_for(namespace: Any, model: str) -> str | None:
    """Return what a model waits for, where the status and the condition agree."""
    told = namespace.model(model)
    progress = namespace.condition("Progressing")
    agree = progress.get("status") == "True" and f"model {model}: {told.get('message')}" in progress["message"]
    return told.get("reason") if agree else None


async def test_replicas_follow_the_load_and_an_idle_model_goes_whoever_leads(
    namespace: Any, model: Any, router: Any, scaling: Any, until: Any, timing: Timing
) -> None:
    by_load = {"minReplicas": 1, "maxReplicas": 3, "idleSeconds": 6, "targetRequests": 2}
    namespace.multimodel(model("a", scaling=by_load), router={"replicas": 1})

    def replicas() -> int:
        return namespace.get("deployments", "mm-model-a")["spec"]["replicas"]

    def ready() -> int:
        return namespace.get("deployments", "mm-model-a").get("status", {}).get("readyReplicas", 0)

    await until("the model is loaded", lambda: "mm-model-a" in namespace.names("deployments") and ready() == 1)
    async with scaling():
        with router.requests("a", 5):
            await until("three replicas", lambda: replicas() == 3)
            await until("all of them serve", lambda: ready() == 3)
        router.silent = True
        asked = router.asked
        await until("the silent router has been asked for long", lambda: router.asked > asked + 3 * timing.down)
        assert replicas() == 3
        router.silent = False
        await until("one replica", lambda: replicas() == 1)
        await until("the Events", lambda: {"LoadRose", "LoadFell"} <= reasons(namespace))

    with router.requests("a", 1):
        pass
    ended = time.time()
    async with scaling():
        await until("no replica", lambda: replicas() == 0)
        assert 6 <= time.time() - ended < 16
        await until("the Event", lambda: "Idle" in reasons(namespace))


async def test_an_unloaded_model_stays_unloaded_whatever_is_in_flight(
    namespace: Any, model: Any, router: Any, scaling: Any, until: Any
) -> None:
    namespace.multimodel(model("a", scaling={"maxReplicas": 3, "targetRequests": 1}), router={"replicas": 1})
    await until("the model is there", lambda: "mm-model-a" in namespace.names("deployments"))
    async with scaling():
        namespace.scale("mm-model-a", 0)
        with router.requests("a", 9):
            asked = router.asked
            await until("the router has been asked", lambda: router.asked > asked + 5)
        assert namespace.get("deployments", "mm-model-a")["spec"]["replicas"] == 0


async def test_models_share_one_place_the_idle_at_once_and_the_busy_by_turns(
    namespace: Any, model: Any, router: Any, scaling: Any, until: Any
) -> None:
    namespace.multimodel(model("a"), model("b"), residency={"maxLoaded": 1}, router={"replicas": 1})
    most = 0

    def loaded() -> set[str]:
        nonlocal most
        held = {
            pod["metadata"]["labels"][names.LABEL_MODEL]
            for pod in namespace.all("pods", labelSelector=names.LABEL_MODEL)
            if not pod["spec"].get("schedulingGates")
        }
        most = max(most, len(held))
        return held

    def replicas() -> dict[str, int]:
        wanted = {name: namespace.get("deployments", f"mm-model-{name}")["spec"]["replicas"] for name in "ab"}
        loaded()
        return wanted

    async with scaling():
        await until("the first of the list is let in", lambda: loaded() == {"a"})
        assert replicas() == {"a": 1, "b": 0}
        await until("it serves", lambda: namespace.get("deployments", "mm-model-a")["status"].get("readyReplicas"))

        namespace.scale("mm-model-b", 1)
        with router.requests("b", 1):
            await until("the idle one makes room", lambda: loaded() == {"b"})
            assert replicas() == {"a": 0, "b": 1}

            namespace.scale("mm-model-a", 1)
            with router.requests("a", 1):
                await until("who waits is told", lambda: waits_for(namespace, "a") == "WaitingForPlace")
                await until("the busy one's turn is over", lambda: loaded() == {"a"})
                assert replicas() == {"a": 1, "b": 1}
            await until("the other's turn comes again", lambda: loaded() == {"b"})
        assert most == 1
        await until("the Event", lambda: "MadeRoom" in reasons(namespace))


async def test_an_idle_model_gives_its_gpu_to_one_that_finds_none(
    namespace: Any, model: Any, router: Any, scaling: Any, until: Any
) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    namespace.multimodel(model("a", **gpu), model("b", scaling={"minReplicas": 0}, **gpu), router={"replicas": 1})

    def serving() -> list[str]:
        return [
            name
            for name in "ab"
            if namespace.get("deployments", f"mm-model-{name}").get("status", {}).get("readyReplicas")
        ]

    await until("both models are there", lambda: {"mm-model-a", "mm-model-b"} <= namespace.names("deployments"))
    async with scaling():
        await until("the first has the GPU", lambda: serving() == ["a"])
        with router.requests("a", 1):
            namespace.scale("mm-model-b", 1)
            asked = router.asked
            await until("the router has been asked", lambda: router.asked > asked + 5)
            assert serving() == ["a"]
            await until("who waits is told", lambda: waits_for(namespace, "b") == "WaitingForDevice")
            assert namespace.condition("Degraded")["status"] == "False"
        with router.requests("b", 1):
            await until("the other has the GPU", lambda: serving() == ["b"])
    assert namespace.get("deployments", "mm-model-a")["spec"]["replicas"] == 0
