"""An operator that lets no router run without API keys, on a real API server."""

from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.control_plane


@pytest.fixture
def strict_operator(operator: Any, start_operator: Any, namespace: Any) -> Iterator[Any]:
    with operator.paused():
        running = start_operator(f"--namespace={namespace.name}", "--resync-seconds=1", "--require-api-keys")
        yield running
        running.stop()


def test_a_router_comes_with_its_keys_and_goes_without(
    strict_operator: Any, namespace: Any, eventually: Any, model: Any
) -> None:
    def set_keys(value: Any) -> None:
        namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"router": {"apiKeys": value}}})

    namespace.multimodel(model("a"))
    eventually("it is told", lambda: namespace.condition("RouterReady").get("reason") == "ApiKeysMissing")
    assert namespace.names("deployments") == {"mm-model-a"}
    assert f"kubectl patch mm mm -n {namespace.name} " in namespace.condition("RouterReady")["message"]

    set_keys({"secretName": "mm-keys"})
    eventually("a router", lambda: "mm-router" in namespace.names("deployments"))
    pod = namespace.get("deployments", "mm-router")["spec"]["template"]["spec"]
    assert {"secretName": "mm-keys", "defaultMode": 0o440} in [volume.get("secret") for volume in pod["volumes"]]
    eventually("it starts", lambda: namespace.condition("RouterReady")["reason"] == "RouterStarting")
    assert namespace.condition("RouterReady")["message"].endswith("they need the Secret mm-keys")

    set_keys(None)
    eventually("no router", lambda: namespace.names("deployments") == {"mm-model-a"})
    eventually("it is told again", lambda: namespace.condition("RouterReady")["reason"] == "ApiKeysMissing")
