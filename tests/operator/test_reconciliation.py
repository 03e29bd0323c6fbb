"""The operator as a process against a real API server: what it makes, mends, leaves alone and says."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("operator")]

Namespace = Any
StartOperator = Callable[..., Any]
Eventually = Callable[..., Any]
MakeModel = Callable[..., dict[str, Any]]


@pytest.fixture
def two_models(namespace: Namespace, eventually: Eventually, model: MakeModel) -> Any:
    """A MultiModel `mm` with the models a and b, whose children and status are there."""
    resource = namespace.multimodel(model("a", alias="first"), model("b"))
    eventually("a status", namespace.status)
    eventually("pods", lambda: len(namespace.all("pods")) == 4)
    return resource


def test_a_multimodel_gets_its_children_and_its_status(two_models: Any, namespace: Namespace) -> None:
    assert namespace.names("deployments") == {"mm-model-a", "mm-model-b", "mm-router"}
    assert namespace.names("services") == {"mm-model-a", "mm-model-b", "mm-router"}
    for plural in ("serviceaccounts", "roles", "rolebindings"):
        assert "mm-router" in namespace.names(plural)
    for plural in ("deployments", "services", "roles", "rolebindings"):
        for child in namespace.all(plural):
            (owner,) = child["metadata"]["ownerReferences"]
            assert (owner["uid"], owner["controller"]) == (two_models["metadata"]["uid"], True)
            assert owner["blockOwnerDeletion"] is True
    status = namespace.status()
    assert (status["loaded"], status["defaultModel"], status["observedGeneration"]) == ("0/2", "first", 1)
    assert status["url"] == f"http://mm-router.{namespace.name}.svc:1234/v1"
    assert {m["name"]: m["state"] for m in status["models"]} == {"a": "reloading", "b": "reloading"}
    metadata = namespace.get("multimodels", "mm")["metadata"]
    assert "finalizers" not in metadata
    assert "annotations" not in metadata


def test_ready_when_the_pods_are(two_models: Any, namespace: Namespace, eventually: Eventually) -> None:
    namespace.become_ready("mm-model-a")
    eventually("one is loaded", lambda: namespace.status()["loaded"] == "1/2")
    ready = namespace.condition("Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "ModelsLoading", "waiting for b")

    namespace.become_ready("mm-model-b", "mm-router")
    eventually("ready", lambda: namespace.condition("Ready")["status"] == "True")
    assert namespace.status()["loaded"] == "2/2"
    assert namespace.condition("Degraded")["status"] == "False"
    events = eventually("both loads are told", lambda: e if len(e := namespace.own_events()) == 2 else None)
    assert {(event["type"], event["reason"]) for event in events} == {("Normal", "ModelLoaded")}
    loaded = sorted(event["note"].split("-model-")[0] for event in events)
    assert loaded == ["model a (first): mm", "model b (org/b): mm"]


def test_replicas_belong_to_others_after_creation(
    two_models: Any, namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.scale("mm-model-a", 0)
    eventually("unloaded", lambda: namespace.model("a").get("state") == "unloaded")
    models = [model("a", alias="first", engine={"maxSeqs": 7}), model("b", engine={"maxSeqs": 7})]
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": models}})

    def changed(name: str) -> bool:
        container = namespace.get("deployments", name)["spec"]["template"]["spec"]["containers"][0]
        return "--max-seqs=7" in container["args"]

    eventually("both are patched", lambda: changed("mm-model-a") and changed("mm-model-b"))
    assert namespace.get("deployments", "mm-model-a")["spec"]["replicas"] == 0
    assert namespace.get("deployments", "mm-model-b")["spec"]["replicas"] == 1
    eventually("observed", lambda: namespace.status()["observedGeneration"] == 2)


def test_replicas_that_nobody_scaled_survive_a_change_of_the_spec(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    scaling = {"minReplicas": 3}
    namespace.multimodel(model("a", scaling=scaling), model("z", scaling={"minReplicas": 0}))
    eventually("created", lambda: len(namespace.all("deployments")) == 3)
    for number in (5, 6):
        models = [
            model("a", scaling=scaling, engine={"maxSeqs": number}),
            model("z", scaling={"minReplicas": 0}, engine={"maxSeqs": number}),
        ]
        namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": models}})
        for name, replicas in (("mm-model-a", 3), ("mm-model-z", 0)):
            eventually(
                "patched", lambda n=name, v=number: f"--max-seqs={v}" in json.dumps(namespace.get("deployments", n))
            )
            assert namespace.get("deployments", name)["spec"]["replicas"] == replicas


def test_an_edit_changes_only_what_it_is_about(
    two_models: Any, namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    def generations() -> dict[str, int]:
        return {d["metadata"]["name"]: d["metadata"]["generation"] for d in namespace.all("deployments")}

    eventually("settled", lambda: all(d.get("status", {}).get("replicas") for d in namespace.all("deployments")))
    before = generations()
    models = [model("a", alias="first"), model("b", env=[{"name": "HF_HOME", "value": "/elsewhere"}])]
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": models}})
    eventually("b is patched", lambda: generations()["mm-model-b"] > before["mm-model-b"])
    eventually("observed", lambda: namespace.status()["observedGeneration"] == 2)
    after = generations()
    assert {name for name in after if after[name] != before[name]} == {"mm-model-b"}
    environment = namespace.get("deployments", "mm-model-b")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {variable["name"]: variable["value"] for variable in environment} == {
        "HOME": "/tmp",
        "HF_HOME": "/elsewhere",
        "TRITON_CACHE_DIR": "/cache/triton",
        "XDG_CACHE_HOME": "/cache",
    }


def test_a_field_that_leaves_the_spec_leaves_the_deployment(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.multimodel(model("a", env=[{"name": "EXTRA", "value": "1"}]))
    eventually("created", lambda: "EXTRA" in json.dumps(namespace.all("deployments")))
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": [model("a")]}})
    eventually("gone", lambda: '"EXTRA"' not in json.dumps(namespace.get("deployments", "mm-model-a")["spec"]))


def test_a_model_that_leaves_the_spec_takes_its_objects_along(
    two_models: Any, namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": [model("a", alias="first")]}})
    eventually("gone", lambda: namespace.names("deployments") == {"mm-model-a", "mm-router"})
    eventually("gone", lambda: namespace.names("services") == {"mm-model-a", "mm-router"})
    eventually("told", lambda: [m["name"] for m in namespace.status()["models"]] == ["a"])
    (scaling,) = [r for r in namespace.get("roles", "mm-router")["rules"] if r["resources"] == ["deployments/scale"]]
    assert scaling["resourceNames"] == ["mm-model-a"]


def test_a_router_may_do_its_work_and_nothing_else(two_models: Any, namespace: Namespace, model: MakeModel) -> None:
    router = {"Impersonate-User": f"system:serviceaccount:{namespace.name}:mm-router"}
    namespace.multimodel(model("c"), name="other")

    def answer(method: str, path: str, document: Any = None, **query: str) -> int:
        headers = router | ({"Content-Type": "application/merge-patch+json"} if document else {})
        body = json.dumps(document) if document else None
        status: int = namespace.client.request(method, path, headers=headers, params=query, content=body).status_code
        return status

    multimodels, deployments = namespace.path("multimodels"), namespace.path("deployments")
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace.name}/endpointslices"
    scaled = {"spec": {"replicas": 1}}
    assert answer("GET", multimodels, fieldSelector="metadata.name=mm") == 200
    assert [answer("GET", path) for path in (deployments, namespace.path("pods"), slices)] == [200, 200, 200]
    assert answer("PATCH", f"{deployments}/mm-model-a/scale", scaled) == 200

    assert answer("GET", multimodels) == 403
    assert answer("GET", multimodels, fieldSelector="metadata.name=other") == 403
    assert answer("PATCH", f"{deployments}/mm-router/scale", scaled) == 403
    assert answer("PATCH", f"{deployments}/mm-model-a", scaled) == 403
    assert answer("GET", f"/api/v1/namespaces/{namespace.name}/secrets") == 403


def test_a_restart_writes_nothing(
    namespace: Namespace, start_operator: StartOperator, eventually: Eventually, model: MakeModel
) -> None:
    resources = {"limits": {"cpu": "1000m", "memory": "1024Mi", "nvidia.com/gpu": 1}}
    mounts = [{"name": "disk", "mountPath": "/models", "readOnly": False}]
    volumes = [{"name": "disk", "emptyDir": {"sizeLimit": "1024Mi"}}]
    namespace.multimodel(model("a", resources=resources, volumes=volumes, volumeMounts=mounts), model("b"))
    eventually("pods", lambda: len(namespace.all("pods")) == 4)
    namespace.become_ready("mm-model-a", "mm-model-b", "mm-router")
    eventually("ready", lambda: namespace.condition("Ready").get("status") == "True")
    eventually("all is told", lambda: namespace.condition("RouterReady")["message"].startswith("2 of 2"))
    before = namespace.versions()
    options = f"--namespace={namespace.name}", "--resync-seconds=0.5", "--log-level=DEBUG"
    restarted = start_operator(*options)
    eventually("three looks at everything", lambda: restarted.log.count("mm: in line") >= 3)
    restarted.stop()
    assert namespace.versions() == before


def test_changes_by_others_are_mended(two_models: Any, namespace: Namespace, eventually: Eventually) -> None:
    path = namespace.path("deployments", "mm-model-a")
    image = {"template": {"spec": {"containers": [{"name": "modelserver", "image": "evil:latest"}]}}}
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    namespace.client.patch(path, json={"spec": image}, headers=headers).raise_for_status()
    eventually("mended", lambda: "evil" not in json.dumps(namespace.get("deployments", "mm-model-a")["spec"]))
    namespace.delete("services", "mm-router")
    eventually("made again by the resync", lambda: "mm-router" in namespace.names("services"))
    namespace.delete("deployments", "mm-model-b")
    eventually("made again", lambda: "mm-model-b" in namespace.names("deployments"))


def test_deletion_leaves_nothing(two_models: Any, namespace: Namespace, eventually: Eventually) -> None:
    namespace.delete("multimodels", "mm")
    for plural in ("multimodels", "deployments", "services", "roles", "rolebindings", "pods"):
        eventually(f"no {plural}", lambda p=plural: namespace.names(p) == set())
    assert namespace.names("serviceaccounts") <= {"default"}


def test_a_new_multimodel_of_the_same_name_gets_children_of_its_own(
    two_models: Any, namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.delete("multimodels", "mm")
    uid = namespace.multimodel(model("a"))["metadata"]["uid"]

    def owners() -> set[str]:
        return {d["metadata"]["ownerReferences"][0]["uid"] for d in namespace.all("deployments")}

    eventually("its own children", lambda: owners() == {uid} and len(namespace.all("deployments")) == 2)


def test_bad_weights_are_told_everywhere_and_once(
    two_models: Any, namespace: Namespace, eventually: Eventually
) -> None:
    words = "model.safetensors: the header is cut off at byte 8"
    failure = json.dumps({"reason": "BadWeights", "message": words})
    ended = {"exitCode": 1, "reason": "Error", "message": failure}
    container = {
        "name": "modelserver",
        "image": "x",
        "imageID": "x",
        "ready": False,
        "restartCount": 1,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    (pod,) = namespace.pods_of("mm-model-a")
    namespace.set_pod_status(pod["metadata"]["name"], {"phase": "Running", "containerStatuses": [container]})
    eventually("the model says why", lambda: namespace.model("a").get("reason") == "BadWeights")
    assert namespace.model("a")["message"] == words
    assert namespace.model("a")["state"] == "internal_error"
    for kind, status in (("Degraded", "True"), ("ModelsReady", "False"), ("Ready", "False")):
        condition = namespace.condition(kind)
        assert (condition["status"], condition["reason"]) == (status, "BadWeights")
        assert condition["message"] == f"model a: {words}"
    (event,) = namespace.own_events()
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "BadWeights", f"model a: {words}")
    assert event["regarding"]["name"] == "mm"

    namespace.become_ready("mm-model-a", "mm-model-b", "mm-router")
    recovered = {**container, "ready": True, "state": {"running": {}}}
    namespace.set_pod_status(pod["metadata"]["name"], {"containerStatuses": [recovered]})
    eventually("recovered", lambda: namespace.condition("Ready")["status"] == "True")
    assert "reason" not in namespace.model("a")
    assert namespace.condition("Degraded")["status"] == "False"


def test_a_kind_that_cannot_be_loaded_gets_no_deployment(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    gguf = {"quantizedModelId": "org/q", "quantizedFilename": "q4.gguf"}
    namespace.multimodel(model("a"), {"name": "g", "gguf": gguf})
    eventually("told", lambda: namespace.model("g"))
    assert namespace.names("deployments") == {"mm-model-a", "mm-router"}
    told = namespace.model("g")
    assert (told["state"], told["reason"]) == ("no_loader_config", "UnsupportedSource")
    assert "'gguf'" in told["message"]
    assert namespace.condition("Degraded")["reason"] == "UnsupportedSource"


def test_what_the_api_server_refuses_is_told_in_its_words(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    namespace.multimodel(model("a", volumeMounts=[{"name": "nowhere", "mountPath": "/x"}]), model("b"))
    eventually("told", lambda: namespace.model("a").get("reason") == "BadConfiguration")
    assert 'Not found: "nowhere"' in namespace.model("a")["message"]
    assert namespace.names("deployments") == {"mm-model-b", "mm-router"}, "the others are made all the same"
    namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": [model("a"), model("b")]}})
    eventually("cured", lambda: "reason" not in namespace.model("a"))


def test_an_object_of_somebody_else_is_left_alone(
    namespace: Namespace, eventually: Eventually, model: MakeModel
) -> None:
    ports = [{"name": "theirs", "port": 80}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mm-model-a"}, "spec": {"ports": ports}}
    namespace.create("services", service)
    namespace.multimodel(model("a"))
    eventually("told", lambda: namespace.model("a").get("reason") == "BadConfiguration")
    assert "Service mm-model-a exists and belongs to something else" in namespace.model("a")["message"]
    assert namespace.get("services", "mm-model-a")["spec"]["ports"][0]["name"] == "theirs"


def test_probes_are_answered(operator: Any) -> None:
    url = next(word for word in operator.log.split() if word.startswith("http://127.0.0.1:"))
    with httpx.Client(base_url=url, trust_env=False) as probes:
        assert [probes.get(f"/health/{probe}").status_code for probe in ("live", "ready")] == [200, 200]
