"""When a pod makes way for a new one."""

import json
from typing import Any

import pytest

from multimodel_operator.recovery import Replacement, replacements


def pod(restarts: int = 5, *, ready: bool = False, component: str = "modelserver", **end: Any) -> dict[str, Any]:
    terminated = {"exitCode": 139, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"} | end
    server = {"name": "modelserver", "restartCount": restarts, "lastState": {"terminated": terminated}}
    labels = {"app.kubernetes.io/component": component, "multimodel.dev/model": "a"}
    return {
        "metadata": {"name": "p", "labels": labels},
        "spec": {"nodeName": "node-1"},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}], "containerStatuses": [server]},
    }


def typed(reason: str) -> str:
    return json.dumps({"reason": reason, "message": "m"})


@pytest.mark.parametrize("message", ["", typed("EngineCrashed"), typed("OutOfMemory"), typed("DiskFull")])
def test_a_pod_that_no_restart_cures_is_replaced(message: str) -> None:
    words = "model a: p on node-1 was restarted 5 times in vain; a new pod takes over"
    assert list(replacements([pod(message=message)])) == [Replacement("p", words)]


LEAVING = pod() | {"metadata": pod()["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
KEPT = {
    "it is restarted a few times more": pod(4),
    "it serves again": pod(ready=True),
    "it leaves already": LEAVING,
    "it is a router's": pod(component="router"),
    "its weights are bad everywhere": pod(message=typed("BadWeights")),
    "its limit is too low everywhere": pod(reason="OOMKilled"),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_pod_stays_where_a_new_one_would_not_help(case: str) -> None:
    assert list(replacements([KEPT[case]])) == []
