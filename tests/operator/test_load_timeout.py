"""A model that is not loaded in time says so, with the limit and the field that raises it."""

from typing import Any

import pytest

pytestmark = pytest.mark.control_plane


def test_a_load_that_takes_too_long_is_told(namespace: Any, eventually: Any, model: Any) -> None:
    namespace.multimodel(model("a", loading={"timeoutSeconds": 90}), model("b"))
    eventually("a pod", lambda: namespace.pods_of("mm-model-a"))
    (pod,) = namespace.pods_of("mm-model-a")
    ended = {
        "exitCode": 137,
        "reason": "Error",
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:01:31Z",
    }
    container = {
        "name": "modelserver",
        "image": "x",
        "imageID": "x",
        "ready": False,
        "restartCount": 1,
        "state": {"running": {"startedAt": "2026-01-01T00:01:32Z"}},
        "lastState": {"terminated": ended},
    }
    namespace.set_pod_status(pod["metadata"]["name"], {"phase": "Running", "containerStatuses": [container]})
    eventually("told", lambda: namespace.model("a").get("reason") == "LoadTimeout")
    assert "within 90 s" in namespace.model("a")["message"]
    assert "loading.timeoutSeconds" in namespace.model("a")["message"]
    assert "reason" not in namespace.model("b")
    assert namespace.condition("Degraded")["reason"] == "LoadTimeout"
