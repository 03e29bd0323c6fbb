"""What only a cluster can do to a router: edits and deletion of the MultiModel, an API server that goes away."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from multimodel_api import names
from multimodel_router.fleet import FleetUnavailableError
from multimodel_router.fleet.kubernetes import cluster_access
from multimodel_router.server import ABANDONED_SECONDS

pytestmark = pytest.mark.control_plane

Start = Callable[..., Awaitable[Any]]
MODEL = {"name": "abacus", "alias": "math"}
MULTIMODELS = f"/apis/{names.API_VERSION}"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


async def test_an_edited_multimodel_is_followed_and_a_deleted_one_forgotten(
    cluster: Any, start_on_kubernetes: Start, until: Any
) -> None:
    router = await start_on_kubernetes([MODEL])
    path = f"{cluster.path(names.PLURAL, MULTIMODELS)}/mm"
    renamed = [{"op": "replace", "path": "/spec/models/0/alias", "value": "sums"}]
    patched = await cluster.api.patch(path, json=renamed, headers={"Content-Type": "application/json-patch+json"})
    assert patched.is_success, patched.text
    said = [{**model, "id": "sums"} for model in patched.json()["status"]["models"]]
    headers = {"Content-Type": "application/merge-patch+json"}
    followed = await cluster.api.patch(f"{path}/status", json={"status": {"models": said}}, headers=headers)
    assert followed.is_success, followed.text

    async def ids() -> list[str]:
        return [card["id"] for card in (await router.http.get("/v1/models")).json()["data"]]

    await until(ids, ["default", "sums"])
    assert (await cluster.api.delete(path)).is_success
    await until(ids, [])
    for body in (CHAT, CHAT | {"model": "sums"}):
        assert (await router.http.post("/v1/chat/completions", json=body)).status_code == 404


async def test_ids_are_served_as_the_status_says_while_the_spec_is_ahead(
    cluster: Any, start_on_kubernetes: Start, until: Any
) -> None:
    router = await start_on_kubernetes([MODEL | {"min": 1}, {"name": "scribe"}])
    await router.until("math", "loaded")
    path = f"{cluster.path(names.PLURAL, MULTIMODELS)}/mm"
    spec = (await cluster.api.get(path)).json()["spec"]
    canonical = {model["name"]: model["plain"]["modelId"] for model in spec["models"]}

    def said(abacus: str, scribe: str) -> dict[str, Any]:
        ids = {"abacus": abacus, "scribe": scribe}
        models = [{"name": n, "id": i, "canonicalId": canonical[n], "state": "loaded"} for n, i in ids.items()]
        return {"status": {"models": models, "defaultModel": abacus}}

    async def write(document: dict[str, Any], part: str = "") -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        patched = await cluster.api.patch(path + part, json=document, headers=headers)
        assert patched.is_success, patched.text

    async def ids() -> list[str]:
        return [card["id"] for card in (await router.http.get("/v1/models")).json()["data"]]

    await write(said("math", canonical["scribe"]), "/status")
    moved = [{key: spec["models"][0][key] for key in spec["models"][0] if key != "alias"}]
    moved.append(spec["models"][1] | {"alias": "math"})
    await write({"spec": {"models": moved}})
    assert await ids() == ["default", "math", canonical["scribe"]]
    answer = await router.http.post("/v1/chat/completions", json=CHAT | {"model": "math"})
    assert answer.status_code == 200, "the old model serves on under the id"
    await write(said(canonical["abacus"], "math"), "/status")
    await until(ids, ["default", canonical["abacus"], "math"])


async def test_only_the_scale_is_written_and_under_the_routers_name(cluster: Any, start_on_kubernetes: Start) -> None:
    router = await start_on_kubernetes([MODEL])
    path = f"{cluster.path('deployments', '/apis/apps/v1')}/mm-model-abacus"
    before = (await cluster.api.get(path)).json()
    assert (await router.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    after = (await cluster.api.get(path)).json()
    assert after["spec"] == before["spec"] | {"replicas": 1}
    (entry,) = [e for e in after["metadata"]["managedFields"] if e["manager"] == names.FieldManager.ROUTER]
    assert (entry["subresource"], entry["fieldsV1"]) == ("scale", {"f:spec": {"f:replicas": {}}})


async def test_a_model_whose_deployment_is_not_made_yet_is_waited_for(cluster: Any, start_on_kubernetes: Start) -> None:
    router = await start_on_kubernetes([MODEL])
    path = f"{cluster.path('deployments', '/apis/apps/v1')}/mm-model-abacus"
    deployment = (await cluster.api.get(path)).json()
    assert (await cluster.api.delete(path, params={"propagationPolicy": "Background"})).is_success
    await router.until("math", "no_loader_config")
    request = asyncio.create_task(router.http.post("/v1/chat/completions", json=CHAT))
    await asyncio.wait((request,), timeout=0.2)
    assert not request.done()
    deployment["metadata"] = {key: deployment["metadata"][key] for key in ("name", "labels")}
    await cluster.create(cluster.path("deployments", "/apis/apps/v1"), deployment)
    assert (await request).status_code == 200


async def test_a_router_accepts_for_a_while_after_its_end_unless_every_other_ends_too(
    cluster: Any, start_on_kubernetes: Start
) -> None:
    router = await start_on_kubernetes([MODEL], settings={"lame_duck_seconds": 60.0})
    labels = {names.LABEL_INSTANCE: "mm", names.LABEL_COMPONENT: names.Component.ROUTER}
    for name in ("mm-router-1", "mm-router-2"):
        metadata = {"name": name, "labels": labels, "finalizers": ["multimodel.dev/test"]}  # so that it is there on
        container = {"name": "router", "image": "standin", "args": [], "env": []}
        await cluster.create(cluster.path("pods"), {"metadata": metadata, "spec": {"containers": [container]}})
    stopping = asyncio.create_task(router.stop())
    assert (await cluster.api.delete(f"{cluster.path('pods')}/mm-router-1")).is_success
    await asyncio.wait((stopping,), timeout=2 * ABANDONED_SECONDS)
    assert not stopping.done()
    assert (await router.http.get("/v1/models")).status_code == 200
    assert (await cluster.api.delete(f"{cluster.path('pods')}/mm-router-2")).is_success
    await asyncio.wait_for(stopping, timeout=10)


class Proxy:
    """A TCP proxy before the API server that can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there_writer}
        if self.cut:
            self.go_away()
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    def go_away(self) -> None:
        self.cut = True
        for writer in self._writers:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy(cluster: Any, tmp_path: Any) -> AsyncIterator[Proxy]:
    """Put a proxy between the router and the API server."""
    kubeconfig = tmp_path / "kubeconfig"
    document = yaml.safe_load(kubeconfig.read_text())
    url = urlsplit(document["clusters"][0]["cluster"]["server"])
    made = Proxy(url.hostname, url.port)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        kubeconfig.write_text(yaml.safe_dump(document))
        yield made
        made.go_away()


async def test_loaded_models_are_served_while_the_api_server_is_away(
    proxy: Proxy, start_on_kubernetes: Start, cluster: Any, until: Any
) -> None:
    router = await start_on_kubernetes([MODEL | {"min": 1}, {"name": "scribe", "alias": "words"}])
    await router.until("math", "loaded")
    proxy.go_away()
    for _ in range(3):
        assert (await router.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await router.http.get("/health/ready")).status_code == 200
    refused = await router.http.post("/v1/chat/completions", json=CHAT | {"model": "words"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "fleet_unavailable")
    unload = await router.http.post("/v1/models/unload", json={"model_id": "math"})
    assert (unload.status_code, unload.json()["status"]) == (500, "internal_error")
    proxy.cut = False
    await cluster.api.patch(
        f"{cluster.path('deployments', '/apis/apps/v1')}/mm-model-abacus/scale",
        json={"spec": {"replicas": 0}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    await router.until("math", "unloaded")


async def test_a_list_of_models_waits_until_the_fleet_has_been_seen(
    proxy: Proxy, cluster: Any, manifest: Any, join: Start
) -> None:
    await cluster.apply(manifest([MODEL]))
    proxy.go_away()
    router = await join(models=None)
    listing = asyncio.create_task(router.http.get("/v1/models"))
    asked = asyncio.create_task(router.http.post("/v1/models/status", json={"model_id": "math"}))
    assert (await router.http.get("/health/ready")).status_code == 503
    assert not listing.done()
    proxy.cut = False
    assert [card["id"] for card in (await listing).json()["data"]] == ["default", "math"]
    assert (await asked).json()["status"] == "unloaded"


async def test_the_router_as_a_process(cluster: Any, manifest: Any, tmp_path: Path, until: Any) -> None:
    await cluster.apply(manifest([MODEL]))
    options = ["--fleet=kubernetes", "--multimodel=mm", f"--namespace={cluster.namespace}", "--port=0"]
    command = [sys.executable, "-m", "multimodel_router", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    url = line.split("answers on ")[1].split("/v1")[0]
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:

        async def ready() -> int:
            return (await http.get("/health/ready")).status_code

        await until(ready, 200)
        listed = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card.get("status")) for card in listed] == [("default", None), ("math", "unloaded")]
    process.terminate()
    assert (await process.stderr.read()).decode() == ""
    assert await process.wait() == 0


async def test_without_access_to_a_cluster_the_fleet_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(FleetUnavailableError, match="set KUBECONFIG, or run in a pod"):
        await cluster_access()
