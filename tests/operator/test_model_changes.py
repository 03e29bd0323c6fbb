"""What changes about models, against a real API server and its Deployment controller; the kubelet is played."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("operator")]

Namespace = Any
Eventually = Callable[..., Any]
MakeModel = Callable[..., dict[str, Any]]

OLD_TIME = "2026-01-01T00:00:00Z"
SERVER_ADDRESS = "127.83.20.7"
"""Model servers are asked at a fixed port; at this address nobody else has it."""


@pytest.fixture
def model_server() -> Iterator[list[str]]:
    """A server that tells how it has loaded; the paths that it was asked for."""
    asked: list[str] = []
    seconds = {"starting": 1.5, "reading_weights": 4.0, "warming_up": 0.5}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps({"phase": "ready", "seconds": seconds}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer((SERVER_ADDRESS, 8000), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def arguments(namespace: Namespace, deployment: str) -> list[str]:
    template = namespace.get("deployments", deployment)["spec"]["template"]
    return template["spec"]["containers"][0]["args"]


def change(namespace: Namespace, *models: dict[str, Any]) -> None:
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": list(models)}})


def ids(namespace: Namespace) -> dict[str, str]:
    return {model["name"]: model["id"] for model in namespace.status().get("models", [])}


def newest(namespace: Namespace, deployment: str, running: set[str]) -> str | None:
    return next(iter(pods(namespace, deployment) - running), None)


def pods(namespace: Namespace, deployment: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in namespace.pods_of(deployment)}


def test_a_load_is_told_with_its_parts(
    namespace: Namespace, eventually: Eventually, model: MakeModel, model_server: list[str]
) -> None:
    namespace.multimodel(model("a"))
    (pod,) = eventually("a pod", lambda: namespace.pods_of("mm-model-a"))
    created = pod["metadata"]["creationTimestamp"]
    running = namespace.running_status(pod, created) | {"podIP": SERVER_ADDRESS, "podIPs": [{"ip": SERVER_ADDRESS}]}
    running["conditions"].append({"type": "PodScheduled", "status": "True", "lastTransitionTime": created})
    namespace.set_pod_status(pod["metadata"]["name"], running)
    (load,) = eventually("the load is told", lambda: namespace.model("a").get("loads"))
    assert load["phases"] == {"scheduling": 0, "image": 0, "start": 1.5, "weights": 4, "warmUp": 0.5}
    assert (load["pod"], load["seconds"]) == (pod["metadata"]["name"], 6)
    (event,) = eventually("an Event", namespace.own_events)
    assert event["reason"] == "ModelLoaded"
    assert "in 6 s (scheduling 0 s, image 0 s, start 1.5 s, weights 4 s, warm up 0.5 s)" in event["note"]
    assert model_server == ["/health/progress"], "each load is asked about once"


def test_without_a_spare_gpu_the_old_pod_leaves_first(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    namespace.multimodel(model("a", **gpu))
    eventually("a Deployment", lambda: namespace.names("deployments") >= {"mm-model-a"})
    namespace.become_ready("mm-model-a")
    eventually("loaded", lambda: namespace.model("a").get("state") == "loaded")
    old = pods(namespace, "mm-model-a")

    change(namespace, model("a", engine={"maxSeqs": 7}, **gpu))
    new = eventually("a new pod beside the old one", lambda: newest(namespace, "mm-model-a", old))
    eventually("it is told", lambda: namespace.condition("Progressing")["reason"] == "RollingOut")
    no_gpu = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    no_gpu |= {"message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "lastTransitionTime": OLD_TIME}
    namespace.set_pod_status(new, {"conditions": [no_gpu]})
    eventually("the old pod has left", lambda: pods(namespace, "mm-model-a") == {new})

    def strategy() -> dict[str, Any]:
        return namespace.get("deployments", "mm-model-a")["spec"]["strategy"]["rollingUpdate"]

    assert strategy() == {"maxSurge": 0, "maxUnavailable": 1}
    eventually("requests wait for it", lambda: namespace.model("a")["state"] == "reloading")
    assert namespace.condition("Degraded")["status"] == "False", "its room is being made"
    namespace.become_ready("mm-model-a")
    eventually("beside each other again", lambda: strategy() == {"maxSurge": 1, "maxUnavailable": 0})
    assert pods(namespace, "mm-model-a") == {new}


def test_an_alias_moves_when_the_new_model_is_warm(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.multimodel(model("a", alias="chat"), model("b"))
    eventually("Deployments", lambda: namespace.names("deployments") >= {"mm-model-a", "mm-model-b"})
    namespace.become_ready("mm-model-a", "mm-model-b")
    eventually("loaded", lambda: namespace.status().get("loaded") == "2/2")
    old = pods(namespace, "mm-model-b")

    change(namespace, model("a"), model("b", alias="chat"))
    new = eventually("b starts with the alias", lambda: newest(namespace, "mm-model-b", old))
    eventually("observed", lambda: namespace.status()["observedGeneration"] == 2)
    assert ids(namespace) == {"a": "chat", "b": "org/b"}
    assert "--alias=chat" in arguments(namespace, "mm-model-a")
    assert namespace.status()["defaultModel"] == "chat"

    (pod,) = [p for p in namespace.pods_of("mm-model-b") if p["metadata"]["name"] == new]
    namespace.set_pod_status(new, namespace.running_status(pod))
    eventually("the alias has moved", lambda: ids(namespace) == {"a": "org/a", "b": "chat"})
    eventually("a starts without it", lambda: "--alias=chat" not in arguments(namespace, "mm-model-a"))
    assert "IdMoved" in {event["reason"] for event in namespace.own_events()}


def test_a_successor_takes_over_before_its_predecessor_goes(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.multimodel(model("old", alias="chat"))
    eventually("a Deployment", lambda: namespace.names("deployments") >= {"mm-model-old"})
    namespace.become_ready("mm-model-old")
    eventually("loaded", lambda: namespace.status().get("loaded") == "1/1")
    change(namespace, model("new", alias="chat"))
    eventually("both are there", lambda: ids(namespace) == {"new": "org/new", "old": "chat"})
    eventually("the new one starts", lambda: "mm-model-new" in namespace.names("deployments"))
    assert "mm-model-old" in namespace.names("deployments")
    namespace.become_ready("mm-model-new")
    eventually("the new one serves", lambda: ids(namespace) == {"new": "chat"})
    eventually("the old one goes", lambda: "mm-model-old" not in namespace.names("deployments"))


def test_a_bad_source_takes_nothing_away(namespace: Namespace, eventually: Eventually, model: MakeModel) -> None:
    namespace.multimodel(model("a", alias="chat"))
    eventually("a Deployment", lambda: namespace.names("deployments") >= {"mm-model-a"})
    namespace.become_ready("mm-model-a", "mm-router")
    eventually("ready", lambda: namespace.condition("Ready").get("status") == "True")
    old = pods(namespace, "mm-model-a")

    change(namespace, model("a", "org/typo", alias="chat"))
    new = eventually("a new pod", lambda: newest(namespace, "mm-model-a", old))
    failure = json.dumps({"reason": "HubNotFound", "message": "org/typo is not on the Hub"})
    status = namespace.running_status(namespace.get("pods", new))
    status["conditions"] = []
    status["containerStatuses"][0] |= {"ready": False, "state": {"terminated": {"exitCode": 1, "message": failure}}}
    namespace.set_pod_status(new, status)
    eventually("it is said", lambda: namespace.condition("Degraded")["reason"] == "HubNotFound")
    told = namespace.model("a")
    assert (told["state"], told["canonicalId"], told["reason"]) == ("loaded", "org/a", "HubNotFound")
    assert namespace.condition("Ready")["status"] == "True"
    blocked = namespace.condition("Progressing")
    assert (blocked["status"], blocked["reason"]) == ("False", "RolloutBlocked")
    assert "the earlier revision serves on: org/typo is not on the Hub" in blocked["message"]
    assert {"HubNotFound", "RolloutBlocked"} <= {event["reason"] for event in namespace.own_events()}

    change(namespace, model("a", alias="chat"))
    eventually("all is as before", lambda: pods(namespace, "mm-model-a") == old)
    eventually("and said so", lambda: namespace.condition("Degraded")["status"] == "False")


def test_a_pod_that_no_restart_cures_makes_way(namespace: Namespace, eventually: Eventually, model: MakeModel) -> None:
    namespace.multimodel(model("a"))
    (pod,) = eventually("a pod", lambda: namespace.pods_of("mm-model-a"))
    status = namespace.running_status(pod)
    status["conditions"] = []
    end = {"exitCode": 139, "reason": "Error", "startedAt": OLD_TIME, "finishedAt": OLD_TIME}
    status["containerStatuses"][0] |= {"ready": False, "restartCount": 4, "lastState": {"terminated": end}}
    name = pod["metadata"]["name"]
    namespace.set_pod_status(name, status)
    eventually("the cause is told", lambda: namespace.model("a").get("reason") == "ServerCrashed")
    assert (namespace.model("a")["restarts"], namespace.model("a")["lastEnd"]["at"]) == (4, OLD_TIME)
    assert pods(namespace, "mm-model-a") == {name}
    status["containerStatuses"][0]["restartCount"] = 5
    namespace.set_pod_status(name, status)
    eventually("another pod", lambda: pods(namespace, "mm-model-a").isdisjoint({name}))
    eventually("it is told", lambda: "PodReplaced" in {event["reason"] for event in namespace.own_events()})
    eventually("a fresh start", lambda: namespace.model("a").get("restarts") == 0)
    assert namespace.model("a")["lastEnd"]["reason"] == "ServerCrashed", "what happened stays on record"
