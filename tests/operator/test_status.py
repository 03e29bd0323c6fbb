"""The status as a table: what is observed, and what people are told."""

import dataclasses
import json
import shlex
from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.failures import FailureReason
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.router_spec import ApiKeys
from multimodel_api.scaling import Residency
from multimodel_api.status import ConditionReason, Memory, MultiModelStatus
from multimodel_operator import serving, status
from multimodel_operator.fit import LOOKING, Fit
from multimodel_operator.objects import Observed
from multimodel_operator.status import Findings

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T01:00:00Z"
SPEC = MultiModelSpec.model_validate(
    {
        "models": [
            {"name": "a", "alias": "first", "plain": {"modelId": "org/a"}},
            {"name": "b", "plain": {"modelId": "org/b"}},
        ]
    }
)


def deployment(name: str, replicas: int, ready: int) -> dict[str, Any]:
    shown = {"readyReplicas": ready} if ready else {}  # as the API server leaves zeros out
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas}, "status": shown}


POD = {"labels": {"app.kubernetes.io/component": "modelserver", "multimodel.dev/model": "b"}}


def pod_of_b(
    name: str, revision: str = "1", *, created: str = NOW, server: Any = None, ready: bool = False
) -> dict[str, Any]:
    metadata = {"name": name, "creationTimestamp": created, "labels": POD["labels"] | {"pod-template-hash": revision}}
    state = {"name": "modelserver", "ready": ready, "restartCount": 0} | (server or {})
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": created}]
    return {
        "metadata": metadata,
        "spec": {"containers": []},
        "status": {"conditions": conditions, "containerStatuses": [state]},
    }


def broken_pod(*, model: str | None, message: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "modelserver" if model else "router"}
    labels |= {"multimodel.dev/model": model} if model else {}
    waiting = {"reason": "ImagePullBackOff", "message": message}
    container = {"name": "c", "ready": False, "image": "org/server:1", "state": {"waiting": waiting}}
    metadata = {"name": "p", "labels": labels, "creationTimestamp": NOW}
    return {"metadata": metadata, "status": {"containerStatuses": [container]}}


def observed(*, a: tuple[int, int] = (1, 1), b: tuple[int, int] = (1, 1), router: int = 2, pods: Any = ()) -> Observed:
    children = (
        deployment("mm-model-a", *a),
        deployment("mm-model-b", *b),
        deployment("mm-router", 2, router),
    )
    return Observed({"metadata": {"name": "mm", "namespace": "team", "generation": 3}}, children, tuple(pods))


def findings(seen: Observed, spec: MultiModelSpec = SPEC, **found: Any) -> Findings:
    return Findings(serving.decide(spec, MultiModelStatus(), seen), **found)


def told(
    seen: Observed, previous: MultiModelStatus | None = None, now: str = NOW, spec: MultiModelSpec = SPEC, **found: Any
) -> MultiModelStatus:
    return status.current_status(seen, spec, findings(seen, spec, **found), previous or MultiModelStatus(), now)


def conditions(shown: MultiModelStatus) -> dict[str, tuple[str, str, str]]:
    return {c.type.value: (c.status, c.reason, c.message) for c in shown.conditions}


IMAGE = broken_pod(model="b", message="no such tag")

TABLE: list[tuple[str, Observed, str, dict[str, tuple[str, str]]]] = [
    (
        "all is well",
        observed(),
        "2/2",
        {
            "Ready": ("True", "AllReady"),
            "ModelsReady": ("True", "AllReady"),
            "RouterReady": ("True", "RouterReady"),
            "Degraded": ("False", "NoFailure"),
        },
    ),
    (
        "one model is unloaded, which is fine",
        observed(b=(0, 0)),
        "1/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("False", "NoFailure")},
    ),
    (
        "a model loads",
        observed(b=(1, 0)),
        "1/2",
        {"Ready": ("False", "ModelsLoading"), "ModelsReady": ("False", "ModelsLoading")},
    ),
    (
        "the router starts",
        observed(router=0),
        "2/2",
        {"Ready": ("False", "RouterStarting"), "ModelsReady": ("True", "AllReady")},
    ),
    ("one router of two is enough", observed(router=1), "2/2", {"Ready": ("True", "AllReady")}),
    (
        "a model fails",
        observed(b=(1, 0), pods=[IMAGE]),
        "1/2",
        {
            "Ready": ("False", "ImagePull"),
            "ModelsReady": ("False", "ImagePull"),
            "Degraded": ("True", "ImagePull"),
        },
    ),
    (
        "a replica fails while another serves",
        observed(b=(2, 1), pods=[IMAGE]),
        "2/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("True", "ImagePull")},
    ),
    (
        "a failing pod of an unloaded model is nobody's trouble",
        observed(b=(0, 0), pods=[IMAGE]),
        "1/2",
        {"Ready": ("True", "AllReady"), "Degraded": ("False", "NoFailure")},
    ),
    (
        "the router fails",
        observed(router=0, pods=[broken_pod(model=None, message="no router")]),
        "2/2",
        {
            "RouterReady": ("False", "ImagePull"),
            "Ready": ("False", "ImagePull"),
            "Degraded": ("True", "ImagePull"),
        },
    ),
]


@pytest.mark.parametrize(("case", "seen", "loaded", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_conditions(case: str, seen: Observed, loaded: str, expected: dict[str, tuple[str, str]]) -> None:
    shown = told(seen)
    assert shown.loaded == loaded
    found = {kind: (state, reason) for kind, (state, reason, _) in conditions(shown).items()}
    assert list(found) == ["Ready", "ModelsReady", "RouterReady", "Progressing", "Degraded", "CallsFailing"]
    assert found.pop("CallsFailing") == ("False", "NoFailure")
    assert {kind: found[kind] for kind in expected} == expected


def test_a_failure_names_its_model_and_its_cause() -> None:
    shown = told(observed(b=(1, 0), pods=[IMAGE]))
    assert conditions(shown)["Degraded"][2] == "model b: org/server:1: no such tag"
    (a, b) = shown.models
    assert (a.state, a.reason, a.message) == ("loaded", None, None)
    assert (b.state, b.reason, b.message) == ("internal_error", "ImagePull", "org/server:1: no such tag")


def test_a_missing_deployment_cannot_be_scaled() -> None:
    seen = observed()
    bare = Observed(seen.multimodel, seen.children[1:])
    assert told(bare).models[0].state == "no_loader_config"


def test_what_the_api_server_refused_is_the_models_fault() -> None:
    shown = told(observed(), refusals={"mm-model-a": "spec.env: wrong"})
    assert (shown.models[0].reason, shown.models[0].message) == ("BadConfiguration", "spec.env: wrong")
    assert conditions(shown)["Degraded"][0] == "True"


def test_a_transition_keeps_its_time_while_the_status_stays() -> None:
    first = told(observed(b=(1, 0)))
    second = told(observed(b=(1, 0), pods=[IMAGE]), first, LATER)
    times = {c.type.value: c.last_transition_time for c in second.conditions}
    changed = {"Progressing": LATER, "Degraded": LATER}
    assert times == {"Ready": NOW, "ModelsReady": NOW, "RouterReady": NOW, "CallsFailing": NOW} | changed


def test_nothing_new_is_the_same_status() -> None:
    first = told(observed())
    again = status.previous_status({"status": first.model_dump(mode="json", by_alias=True, exclude_none=True)})
    assert told(observed(), again, LATER) == again


def test_a_spec_that_is_not_understood_is_said_and_the_rest_kept() -> None:
    first = told(observed())
    shown = status.invalid_status({"metadata": {"generation": 4}}, "models.0.warp: unknown", first, LATER)
    assert conditions(shown)["Ready"] == ("False", "InvalidSpec", "models.0.warp: unknown")
    assert (shown.observed_generation, shown.models) == (4, first.models)


def test_a_status_of_another_version_is_written_anew() -> None:
    assert status.previous_status({"status": {"phase": "Running"}}) == MultiModelStatus()
    assert status.previous_status({}) == MultiModelStatus()


def test_a_router_without_keys_is_withheld_with_the_commands_to_type() -> None:
    shown = told(observed(router=0), router_withheld=True)
    state, reason, message = conditions(shown)["RouterReady"]
    assert (state, reason) == ("False", "ApiKeysMissing")
    make, name = message.split("`")[1::2]
    assert make.startswith("multimodel keys new KEY --secret mm-keys | kubectl apply -n team ")
    patch = shlex.split(name)[-1]
    assert MultiModelSpec.model_validate(SPEC.model_dump() | json.loads(patch)["spec"]).router.api_keys == ApiKeys(
        secret_name="mm-keys"
    )
    assert name.startswith("kubectl patch mm mm -n team ")
    assert "requireApiKeys=false" in message
    assert conditions(shown)["Ready"][1] == "ApiKeysMissing"
    assert conditions(shown)["Degraded"][0] == "False"


def test_a_starting_router_names_the_secrets_that_it_needs() -> None:
    secrets = {"api_keys": {"secret_name": "k"}, "tls": {"secret_name": "t"}}
    spec = MultiModelSpec.model_validate(SPEC.model_dump() | {"router": secrets})
    starting = told(observed(router=0), spec=spec)
    words = "0 of 2 router pods are ready; they need the Secret k; they need the Secret t"
    assert conditions(starting)["RouterReady"] == ("False", "RouterStarting", words)
    running = told(observed(), spec=spec)
    assert conditions(running)["RouterReady"] == ("True", "RouterReady", "2 of 2 router pods are ready")
    assert running.url == "https://mm-router.team.svc:1234/v1"


def written(*names: str) -> dict[str, Any]:
    """The MultiModel with a status in which a router has recorded commands for the models of these names."""
    shown = told(observed()).model_dump(mode="json", by_alias=True, exclude_none=True)
    for model in shown["models"]:
        if model["name"] in names:
            model["lastCommand"] = {"action": "unload", "by": "alice", "at": NOW}
            model["callsFailingSince"] = NOW
    return {"metadata": {"name": "mm", "namespace": "team", "generation": 3}, "status": shown}


def test_what_routers_record_is_none_of_the_operators_business() -> None:
    assert status.previous_status(written("a", "b")) == told(observed())
    assert status.forgotten_records(written("a", "b"), told(observed())) == []


def test_the_command_of_a_model_that_has_left_the_spec_is_forgotten() -> None:
    shown = told(observed())
    alone = shown.model_copy(update={"models": shown.models[:1]})
    assert status.forgotten_records(written("a", "b"), alone) == ["b"]
    assert status.forgotten_records(written("a"), alone) == []


def test_what_routers_tell_of_failing_calls_is_a_condition_while_the_model_is_wanted() -> None:
    failing = written("a")["status"]
    seen = observed()
    since = dataclasses.replace(seen, multimodel=seen.multimodel | {"status": failing})
    words = f"model a: every call has failed since {NOW}"
    assert conditions(told(since))["CallsFailing"] == ("True", "EveryCallFails", words)
    assert told(since).models[0].calls_failing_since is None, "the routers' field is not the operator's to write"
    unloaded = dataclasses.replace(observed(a=(0, 0)), multimodel=since.multimodel)
    assert conditions(told(unloaded))["CallsFailing"][0] == "False"


def test_a_load_is_progress_and_says_how_far_it_is() -> None:
    shown = conditions(told(observed(b=(3, 1))))
    assert shown["Progressing"] == ("True", "ModelsLoading", "model b: 1 of 3 replicas are loaded")
    assert conditions(told(observed()))["Progressing"] == ("False", "Settled", "nothing is under way")
    assert conditions(told(observed(router=1)))["Progressing"][:2] == ("True", "RouterStarting")


def test_a_bad_new_revision_leaves_the_old_one_ready_and_is_said() -> None:
    bad = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}, "image": "org/server:1"}
    pods = [pod_of_b("old", ready=True), pod_of_b("new", "2", created=LATER, server=bad)]
    shown = conditions(told(observed(pods=pods)))
    assert shown["Ready"][0] == "True"
    assert shown["Degraded"][:2] == ("True", "ImagePull")
    assert shown["Progressing"][:2] == ("False", "RolloutBlocked")
    assert shown["Progressing"][2] == "model b: the earlier revision serves on: org/server:1: no such tag"


def test_a_new_revision_that_comes_up_is_progress() -> None:
    pods = [pod_of_b("old", ready=True), pod_of_b("new", "2", created=LATER)]
    shown = conditions(told(observed(pods=pods)))
    assert shown["Progressing"] == ("True", "RollingOut", "model b: a new pod starts beside the old one")


def test_restarts_are_counted_and_their_last_cause_is_remembered() -> None:
    end = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": NOW}
    crashed = pod_of_b("p", server={"restartCount": 2, "lastState": {"terminated": end}, "state": {"running": {}}})
    (_, b) = told(observed(pods=[crashed])).models
    assert b.restarts == 2
    assert b.last_end is not None
    assert (b.last_end.reason, b.last_end.at) == ("OOMKilled", NOW)
    (_, later) = told(observed(), told(observed(pods=[crashed]))).models
    assert (later.restarts, later.last_end) == (0, b.last_end), "the pod is gone, the cause is not"


def test_pods_that_may_not_be_made_are_told() -> None:
    seen = observed(b=(1, 0))
    words = 'pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=1'
    failing = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    seen.children[1]["status"]["conditions"] = [failing]
    (_, b) = told(seen).models
    assert (b.state, b.reason, b.message) == ("internal_error", "QuotaExceeded", words)


def test_a_state_keeps_its_time() -> None:
    first = told(observed(b=(1, 0)))
    assert [model.since for model in first.models] == [NOW, NOW]
    assert [model.since for model in told(observed(), first, LATER).models] == [NOW, LATER]


def test_what_does_not_fit_is_a_warning_with_figures() -> None:
    memory = Memory(weights_mib=900, kv_cache_mib=100, tokens=4096, available_mib=500)
    large, unknown = Fit(False, "too large", memory), Fit(None, "nobody knows")
    shown = told(observed(), fits={"a": unknown, "b": large})
    assert conditions(shown)["Fits"] == ("False", "TooLarge", "model b: too large")
    assert [model.memory for model in shown.models] == [None, memory]
    assert conditions(shown)["Ready"][0] == "True", "it is tried all the same"
    assert conditions(told(observed(), fits={"a": unknown}))["Fits"] == ("Unknown", "NotKnown", "model a: nobody knows")
    fits = {"a": Fit(True, "fits", memory)}
    assert conditions(told(observed(), fits=fits))["Fits"][:2] == ("True", "Fits")


def test_what_fitted_stands_while_it_is_looked_at_again() -> None:
    memory = Memory(weights_mib=900, kv_cache_mib=100, tokens=4096, available_mib=5000)
    first = told(observed(), fits={"a": Fit(True, "fits", memory), "b": Fit(True, "fits", memory)})
    again = told(observed(), first, LATER, fits={"a": LOOKING, "b": Fit(True, "fits", memory)})
    assert again == first, "an operator that has just begun writes nothing"
    assert "Fits" not in conditions(told(observed(), fits={"a": LOOKING}))


def pod_of(model: str, spec: dict[str, Any], *conditions: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": f"{model}-1", "creationTimestamp": NOW, "labels": POD["labels"] | {names.LABEL_MODEL: model}}
    given = [{"lastTransitionTime": NOW} | condition for condition in conditions]
    return {"metadata": metadata, "spec": spec, "status": {"conditions": given}}


def deployed(seen: Observed) -> Observed:
    """The same, with the labels by which models and their Deployments belong together."""
    for child, model in zip(seen.children, "ab", strict=False):
        child["metadata"]["labels"] = {names.LABEL_MODEL: model}
    return seen


SERVES = {"type": "Ready", "status": "True"}
GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
NO_GPU = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
NO_GPU |= {"message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}
GPU = {"containers": [{"name": "modelserver", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}


def test_a_model_that_is_not_let_in_yet_waits_and_fails_in_nothing() -> None:
    first = pod_of("a", {"nodeName": "n"}, SERVES)
    gated = pod_of("b", {"schedulingGates": [{"name": names.RESIDENCY_GATE}]}, GATED)
    one = SPEC.model_copy(update={"residency": Residency(max_loaded=1)})
    shown = told(deployed(observed(b=(1, 0), pods=[first, gated])), spec=one)
    words = "waits for a place: spec.residency.maxLoaded is 1, and a came first"
    (_, b) = shown.models
    assert (b.state, b.reason, b.message) == ("reloading", "WaitingForPlace", words)
    assert conditions(shown)["Progressing"] == ("True", "WaitingForPlace", f"model b: {words}")
    assert conditions(shown)["Ready"] == ("False", "ModelsLoading", f"waiting for b; model b: {words}")
    assert conditions(shown)["Degraded"][0] == "False"
    assert shown.summary == "WaitingForPlace: b; loaded: a"
    enough = SPEC.model_copy(update={"residency": Residency(max_loaded=2)})
    assert told(deployed(observed(b=(1, 0), pods=[first, gated])), spec=enough).models[1].reason is None


def test_a_model_whose_gpu_another_has_waits_and_fails_in_nothing() -> None:
    starved = pod_of("b", GPU, NO_GPU)
    shown = told(deployed(observed(b=(1, 0), pods=[pod_of("a", GPU | {"nodeName": "n"}, SERVES), starved])))
    words = "waits for nvidia.com/gpu, until one of those is idle that have it: a"
    (_, b) = shown.models
    assert (b.state, b.reason, b.message) == ("reloading", "WaitingForDevice", words)
    assert conditions(shown)["Progressing"] == ("True", "WaitingForDevice", f"model b: {words}")
    assert conditions(shown)["Degraded"][0] == "False"
    alone = told(deployed(observed(a=(0, 0), b=(1, 0), pods=[starved])))
    assert (alone.models[1].state, alone.models[1].reason) == ("internal_error", "Unschedulable")


def test_every_reason_is_of_the_fixed_list() -> None:
    known = {*ConditionReason, *FailureReason}
    for _, seen, _, _ in TABLE:
        assert {reason for _, reason, _ in conditions(told(seen)).values()} <= known
