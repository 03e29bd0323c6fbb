"""Each cause by which a model cannot run on a real node reads the same everywhere, and takes nothing from others."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ABACUS = Path(__file__).parents[2] / "examples" / "models" / "abacus"
HELLO: Any = [{"role": "user", "content": "hello"}]
GPU = "nvidia.com/gpu"
NO_IMAGE = "127.0.0.1:9/nowhere/image:typo"
SHIPPED = {"plain": {"modelId": "examples/models/abacus"}}


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, readable to pods, with a model whose weights end too early."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(ABACUS, folder / "truncated")
    with (folder / "truncated" / "model.safetensors").open("r+b") as weights:
        weights.truncate(100_000)
    for path in (folder, *folder.parents[:2], *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)
    return folder


def from_folder(folder: Path) -> dict[str, Any]:
    return {
        "plain": {"modelId": "/models/truncated"},
        "volumes": [{"name": "models", "hostPath": {"path": str(folder)}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }


def with_image(image: str) -> dict[str, Any]:
    return {"podTemplate": {"spec": {"containers": [{"name": "modelserver", "image": image}]}}}


def with_memory(limit: str) -> dict[str, Any]:
    return SHIPPED | {"resources": {"limits": {"memory": limit}}}


CAUSES = {
    "four-gpus-of-one": ("Unschedulable", SHIPPED | {"resources": {"limits": {GPU: 4}}}, f"Insufficient {GPU}"),
    "memory-for-no-server": ("OOMKilled", with_memory("48Mi"), "resources.limits.memory"),
    "memory-for-no-engine": ("OOMKilled", with_memory("192Mi"), "resources.limits.memory"),
    "wrong-image": ("ImagePull", SHIPPED | with_image(NO_IMAGE), NO_IMAGE),
    "half-weights": ("BadWeights", from_folder, "model.safetensors"),
    "no-secret": ("MissingSecret", SHIPPED | {"hubToken": {"secretName": "absent"}}, '"absent" not found'),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_failure_is_told_everywhere_and_others_serve_on(busy: Any, truncated: Path, wait_for: Any, name: str) -> None:
    reason, fields, words = CAUSES[name]
    steady = busy.get("mm", "busy")["spec"]["models"][0]
    failing = {"name": name, "alias": "failing"} | (fields(truncated) if callable(fields) else fields)
    serving = {pod["metadata"]["name"] for pod in busy.pods("steady")}
    with busy.traffic("busy", "chat") as traffic:
        busy.change("busy", [steady, failing])
        degraded = wait_for("the condition", lambda: condition_with(busy, reason))
        assert words in degraded["message"]
        told = busy.model("busy", name)
        assert (told["state"], told["reason"]) == ("internal_error", reason)
        assert reason in busy.node.kubectl("get", "mm", "busy", "--output=wide")
        wait_for("the Event", lambda: any(is_about(event, name, reason) for event in busy.events("busy")))
        client = openai.OpenAI(base_url=busy.router_url("busy"), api_key="unused", max_retries=0, timeout=60)
        with client, pytest.raises(openai.InternalServerError, match=words) as refused:
            client.chat.completions.create(
                model="failing", messages=HELLO, extra_headers={"x-multimodel-progress": "off"}
            )
        assert refused.value.code == reason
        busy.change("busy", [steady])
        wait_for("all is well again", lambda: busy.is_settled("busy"))
    assert traffic.failed == []
    assert {pod["metadata"]["name"] for pod in busy.pods("steady")} == serving


def is_about(event: dict[str, Any], name: str, reason: str) -> bool:
    return bool(event["reason"] == reason and event["note"].startswith(f"model {name}:"))


def condition_with(busy: Any, reason: str) -> dict[str, Any] | None:
    found: dict[str, Any] = busy.condition("busy", "Degraded")
    return found if found.get("reason") == reason else None
