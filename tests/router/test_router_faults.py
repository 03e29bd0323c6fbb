"""What breaks around a router: hosts that fall silent, pods without addresses, an API server that is away or lies."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from multimodel_router import relay
from multimodel_router.fleet import kubernetes, reflector
from multimodel_testbed.calls import call
from multimodel_testbed.control_plane import ControlPlane
from multimodel_testbed.faults import FaultyWay, faulty_way

MATH = {"name": "abacus", "alias": "math"}
WORDS = {"name": "scribe", "alias": "words"}
DEPLOYMENTS = "/apis/apps/v1"
SAID = "You said: good morning"

Start = Callable[..., Awaitable[Any]]


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "good morning"}]} | more


# Model servers.


async def start_two(start: Start, until: Any) -> Any:
    router = await start([MATH | {"min": 2}])

    async def ready() -> int:
        return len(router.fleet.view("abacus").ready)

    await until(ready, 2)
    return router


def server_at(port: int) -> psutil.Process:
    return next(p for p in psutil.Process().children() if f"--port={port}" in p.cmdline())


@pytest.mark.usefixtures("impatient")
async def test_a_stream_from_a_host_that_falls_silent_goes_on_at_another(
    start_on_processes: Start, until: Any, tmp_path: Path
) -> None:
    router = await start_two(start_on_processes, until)
    gate = tmp_path / "gate"
    asked = chat(stream=True, standin={"resumable": True, "gate": str(gate)})
    request = asyncio.create_task(call([router.url], asked))

    async def taken() -> int:
        return len(router.endpoints.load)

    await until(taken, 1)
    (endpoint,) = router.endpoints.load
    stopped = server_at(endpoint.port)
    stopped.send_signal(signal.SIGSTOP)
    gate.touch()
    try:
        answer = await request
        assert answer.good, answer
        assert answer.text == SAID
        assert router.metrics.ejections.labels("abacus", "deaf")._value.get() == 1
        for _ in range(5):
            assert (await call([router.url], chat())).seconds < 0.3, "nobody is sent there again"
    finally:
        stopped.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_merely_takes_long_is_left_in_peace(
    start_on_processes: Start, until: Any, tmp_path: Path
) -> None:
    router = await start_two(start_on_processes, until)
    gate = tmp_path / "gate"
    request = asyncio.create_task(call([router.url], chat(standin={"gate": str(gate)})))
    await asyncio.wait((request,), timeout=1.5)
    gate.touch()
    assert (await request).text == SAID
    assert router.metrics.ejections.labels("abacus", "deaf")._value.get() == 0


@pytest.mark.control_plane
@pytest.mark.parametrize("stream", [False, True])
async def test_a_pod_that_is_killed_before_the_first_byte_loses_nothing(
    start_on_kubernetes: Start, cluster: Any, until: Any, tmp_path: Path, stream: bool
) -> None:
    router = await start_two(start_on_kubernetes, until)
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    script = {"gate": str(gate), "begun": str(begun), "resumable": True}
    request = asyncio.create_task(call([router.url], chat(stream=stream, standin=script)))
    await until(lambda: asyncio.to_thread(begun.exists), True)
    (endpoint,) = router.endpoints.load
    next(pod for pod in cluster.pods.values() if pod.address == endpoint.host).process.kill()
    gate.touch()
    answer = await request
    assert answer.good, answer
    assert answer.text == SAID


# Pods.


@pytest.mark.control_plane
async def test_a_pod_without_an_address_is_waited_for(
    start_on_kubernetes: Start, cluster: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do_nothing(_pod: dict[str, Any]) -> None: ...

    router = await start_on_kubernetes([MATH])
    with monkeypatch.context() as kubelet_away:
        kubelet_away.setattr(cluster, "_tend", do_nothing)
        request = asyncio.create_task(call([router.url], chat(stream=True)))

        async def pods() -> int:
            return len((await cluster.api.get(cluster.path("pods"))).json()["items"])

        await until(pods, 1)
        await router.until("math", "reloading")
        await asyncio.wait((request,), timeout=1.5)
        assert not request.done()
    answer = await request
    assert answer.text == SAID
    assert b": loading math: scheduling" in answer.body


# The API server.


@pytest.fixture
async def way(cluster: Any, plane: ControlPlane, tmp_path: Path) -> AsyncIterator[FaultyWay]:
    """Put a faulty way between the router and the API server."""
    kubeconfig = tmp_path / "kubeconfig"
    with faulty_way(plane, tmp_path) as made:
        document = yaml.safe_load(kubeconfig.read_text())
        document["clusters"][0]["cluster"] = {"server": made.url}
        kubeconfig.write_text(yaml.safe_dump(document))
        yield made
        made.heal()


@pytest.fixture
def short_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RESYNC_SECONDS", 1)
    monkeypatch.setattr(kubernetes, "CALL_SECONDS", 1.0)


@pytest.mark.control_plane
@pytest.mark.usefixtures("short_watches")
@pytest.mark.parametrize("fault", [{"status": 503}, {"hanging": True}], ids=str)
async def test_what_is_loaded_is_served_while_the_api_server_cannot_be_used(
    way: FaultyWay, start_on_kubernetes: Start, until: Any, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    router = await start_on_kubernetes([MATH | {"min": 1}, WORDS])
    await router.until("math", "loaded")
    for name, value in fault.items():
        setattr(way, name, value)

    async def noticed() -> bool:
        return "what was last seen still counts" in caplog.text

    await until(noticed, True)
    for _ in range(10):
        assert (await call([router.url], chat(model="math"))).text == SAID
    assert (await router.http.get("/health/ready")).status_code == 200
    refused = await call([router.url], chat(model="words"))
    assert refused.status == 503
    assert b"fleet_unavailable" in refused.body
    assert int(refused.headers["retry-after"]) > 0
    way.heal()

    async def works_again() -> int:
        return (await call([router.url], chat(model="words"))).status

    await until(works_again, 200)


@pytest.mark.control_plane
@pytest.mark.usefixtures("short_watches")
async def test_a_deletion_that_was_missed_is_found_by_the_next_list(
    way: FaultyWay, start_on_kubernetes: Start, cluster: Any
) -> None:
    router = await start_on_kubernetes([MATH | {"min": 1}])
    await router.until("math", "loaded")
    way.loses = lambda event: event["type"] == "DELETED"
    deployment = f"{cluster.path('deployments', DEPLOYMENTS)}/mm-model-abacus"
    assert (await cluster.api.delete(deployment, params={"propagationPolicy": "Background"})).is_success
    await router.until("math", "no_loader_config")
    assert router.fleet.view("abacus").ready == ()


@pytest.mark.control_plane
async def test_an_object_of_any_length_is_followed(start_on_kubernetes: Start, cluster: Any, caplog: Any) -> None:
    router = await start_on_kubernetes([MATH])
    deployment = f"{cluster.path('deployments', DEPLOYMENTS)}/mm-model-abacus"
    await cluster.patch(deployment, {"metadata": {"annotations": {"notes": "x" * 200_000}}})
    await cluster.patch(f"{deployment}/scale", {"spec": {"replicas": 1}})
    await router.until("math", "loaded")
    assert "deployments" not in caplog.text


@pytest.mark.control_plane
async def test_a_router_that_has_not_seen_the_models_yet_does_not_call_them_unknown(
    way: FaultyWay, start_on_kubernetes: Start, join: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await start_on_kubernetes([MATH | {"min": 1}])
    await first.until("math", "loaded")
    way.status = 503
    late = await join(models=None)
    with monkeypatch.context() as impatient:
        impatient.setattr(relay, "SYNC_SECONDS", 0.1)
        refused = await call([late.url], chat(model="math"))
    assert (refused.status, b"fleet_unavailable" in refused.body) == (503, True)
    request = asyncio.create_task(call([late.url], chat(model="math")))
    await asyncio.wait((request,), timeout=0.3)
    way.heal()
    assert (await request).text == SAID
