"""Models change under steady traffic, and no request fails: a real operator, a router, and stand-ins for servers.

The scheduler is played too: its one node has so many GPUs.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from multimodel_api import names
from multimodel_testbed.control_plane import ControlPlane
from multimodel_testbed.played_cluster import MULTIMODELS, NODE, TICK, PlayedPod

pytestmark = pytest.mark.control_plane

GPU = "nvidia.com/gpu"
CALLERS = 4
STUCK_SECONDS = 8
"""How long the played scheduler says that a pod has had no place, when it says so first."""


@asynccontextmanager
async def operating(plane: ControlPlane, namespace: str, log: Path) -> AsyncIterator[None]:
    """Run an operator; for want of API keys it makes no routers, the test has its own."""
    options = [f"--namespace={namespace}", "--require-api-keys", "--health-port=0"]
    command = [sys.executable, "-m", "multimodel_operator", *options]
    with log.open("wb") as output:
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def schedule(cluster: Any, gpus: int) -> None:
    """Give each pod its place, as long as there are GPUs."""
    while True:
        pods = (await cluster.api.get(cluster.path("pods"))).json()["items"]
        free = gpus - sum("nodeName" in pod["spec"] for pod in pods)
        for pod in [pod for pod in pods if "nodeName" not in pod["spec"]]:
            path = f"{cluster.path('pods')}/{pod['metadata']['name']}"
            if free > 0:
                target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
                body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}}
                await cluster.api.post(f"{path}/binding", json=body | {"target": target})
                free -= 1
            elif not pod["status"].get("conditions"):
                lacking = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                since = datetime.now(UTC) - timedelta(seconds=STUCK_SECONDS)
                lacking |= {
                    "message": f"0/1 nodes are available: 1 Insufficient {GPU}.",
                    "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
                await cluster.patch(f"{path}/status", {"status": {"conditions": [lacking]}})
        await asyncio.sleep(TICK)


class Traffic:
    """Callers that ask one after the other, and what became of their requests."""

    def __init__(self, http: Any) -> None:
        self._http = http
        self.answered = 0
        self.failed: list[str] = []

    async def ask(self) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        while True:
            answer = await self._http.post("/v1/chat/completions", json=body, timeout=120)
            if answer.status_code == 200:
                self.answered += 1
            else:
                self.failed.append(answer.text)
            await asyncio.sleep(0.01)


Rig = Callable[..., Any]


@pytest.fixture
async def rig(
    cluster: Any, plane: ControlPlane, manifest: Any, join: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """`rig(models, gpus)`: an operator's MultiModel under traffic, as `(traffic, models, change, status)`."""
    tend = type(cluster)._tend

    async def tend_bound(self: Any, pod: dict[str, Any]) -> PlayedPod | None:
        return await tend(self, pod) if "nodeName" in pod["spec"] else None

    monkeypatch.setattr(type(cluster), "_tend", tend_bound)
    tasks: list[asyncio.Task[None]] = []
    path = f"{cluster.path(names.PLURAL, MULTIMODELS)}/mm"

    def spec(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
        made = manifest(models).model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]["models"]
        return [model | {"resources": {"limits": {GPU: 1}}} for model in made]

    async def status() -> dict[str, Any]:
        return (await cluster.api.get(path)).json().get("status", {})

    async def change(models: list[dict[str, Any]]) -> None:
        await cluster.patch(path, {"spec": {"models": models}})

    async with operating(plane, cluster.namespace, tmp_path / "operator.log"):

        async def start(models: list[dict[str, Any]], gpus: int) -> Any:
            document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "mm"}}
            made = spec(models)
            await cluster.create(cluster.path(names.PLURAL, MULTIMODELS), document | {"spec": {"models": made}})
            tasks.append(asyncio.create_task(schedule(cluster, gpus)))
            router = await join(models=len(models))
            await router.until("chat", "loaded")
            traffic = Traffic(router.http)
            tasks.extend(asyncio.create_task(traffic.ask()) for _ in range(CALLERS))
            return traffic, made, change, status

        yield start
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pods(cluster: Any) -> set[str]:
    return {pod["metadata"]["name"] for pod in (await cluster.api.get(cluster.path("pods"))).json()["items"]}


@pytest.mark.parametrize("gpus", [1, 2], ids=["no spare GPU", "a spare GPU"])
async def test_a_rollout_fails_no_request(cluster: Any, rig: Rig, until: Any, gpus: int) -> None:
    traffic, made, change, status = await rig([{"name": "a", "alias": "chat", "min": 1}], gpus)
    old = await pods(cluster)
    await change([made[0] | {"engine": {"maxSeqs": 7}}])

    async def rolled_out() -> bool:
        told = await status()
        settled = {c["type"]: c["reason"] for c in told["conditions"]}["Progressing"] == "Settled"
        now = await pods(cluster)
        return settled and len(now) == 1 and now.isdisjoint(old) and told["loaded"] == "1/1"

    await until(rolled_out, True)
    answered = traffic.answered

    async def goes_on() -> bool:
        return traffic.answered > answered + 20

    await until(goes_on, True)
    assert traffic.failed == []


async def test_an_alias_moves_and_no_request_fails(cluster: Any, rig: Rig, until: Any) -> None:
    models = [{"name": "a", "alias": "chat", "min": 1}, {"name": "b", "min": 1}]
    traffic, made, change, status = await rig(models, 4)
    await change([{k: v for k, v in made[0].items() if k != "alias"}, made[1] | {"alias": "chat"}])

    async def moved() -> dict[str, str]:
        return {model["name"]: model["id"] for model in (await status())["models"]}

    await until(moved, {"a": made[0]["plain"]["modelId"], "b": "chat"})
    answered = traffic.answered

    async def goes_on() -> bool:
        return traffic.answered > answered + 20

    await until(goes_on, True)
    assert traffic.failed == []


async def test_a_bad_source_takes_nothing_away(cluster: Any, rig: Rig, until: Any) -> None:
    traffic, made, change, status = await rig([{"name": "a", "alias": "chat", "min": 1}], 2)
    old = await pods(cluster)
    failure = {"fail": {"reason": "HubNotFound", "message": "org/typo is not on the Hub"}}
    script = [{"name": "STANDIN", "value": json.dumps(failure)}]
    await change([made[0] | {"plain": {"modelId": "org/typo"}, "env": script}])

    async def said() -> tuple[str, ...]:
        told = {c["type"]: c for c in (await status())["conditions"]}
        return told["Degraded"]["reason"], told["Progressing"]["reason"], told["ModelsReady"]["status"]

    await until(said, ("HubNotFound", "RolloutBlocked", "True"))
    answered = traffic.answered

    async def goes_on() -> bool:
        return traffic.answered > answered + 20

    await until(goes_on, True)
    await change(made)

    async def as_before() -> bool:
        return await pods(cluster) == old

    await until(as_before, True)
    assert traffic.failed == []
