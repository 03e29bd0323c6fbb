"""What should exist against what does: the steps, and the reasons they give."""

import copy
from typing import Any

import pytest

from multimodel_operator import drift, plan
from multimodel_operator.objects import Observed
from multimodel_operator.owned import Child
from multimodel_operator.plan import Create, Delete, Update

UID = "uid-1"
MULTIMODEL = {"metadata": {"name": "mm", "namespace": "team", "uid": UID}}


def document(name: str = "mm-model-a", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "ownerReferences": [{"uid": UID, "controller": True}]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"minReadySeconds": 1, **spec}}


def live_of(wanted: dict[str, Any], *, replicas: int = 1, own_replicas: bool = False) -> dict[str, Any]:
    """What the API server shows of an applied document: with defaults, fields of others and managers."""
    live = copy.deepcopy(dict(drift.stamped(wanted)))
    live["metadata"] |= {"uid": "uid-live", "resourceVersion": "7"}
    live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    live["spec"] |= {"replicas": replicas, "progressDeadlineSeconds": 600}
    fields: dict[str, Any] = {"f:minReadySeconds": {}} | ({"f:replicas": {}} if own_replicas else {})
    live["metadata"]["managedFields"] = [{"manager": "multimodel-operator", "fieldsV1": {"f:spec": fields}}]
    return live


def steps(wanted: list[Child], *live: dict[str, Any]) -> list[plan.Step]:
    return plan.make_plan(wanted, Observed(MULTIMODEL, tuple(live)))


def test_nothing_is_done_when_all_is_in_line() -> None:
    assert steps([Child(document(), 1)], live_of(document(), replicas=5)) == []


def test_what_is_missing_is_made_with_its_first_replicas() -> None:
    (step,) = steps([Child(document(), 0)])
    assert isinstance(step, Create)
    assert step.document["spec"]["replicas"] == 0
    assert plan.sentence(step) == "create Deployment mm-model-a: does not exist"


def test_a_new_intent_is_applied_without_replicas() -> None:
    (step,) = steps([Child(document(minReadySeconds=2), 1)], live_of(document(), replicas=3))
    assert isinstance(step, Update)
    assert "replicas" not in step.document["spec"]
    assert step.keep_replicas is None
    assert step.reason == "the spec or the operator changed"


def test_replicas_that_the_operator_still_owns_are_handed_over() -> None:
    (step,) = steps([Child(document(minReadySeconds=2), 1)], live_of(document(), replicas=3, own_replicas=True))
    assert isinstance(step, Update)
    assert step.keep_replicas == 3


def test_replicas_of_a_router_stay_with_the_operator() -> None:
    wanted = document("mm-router", replicas=4)
    (step,) = steps([Child(wanted)], live_of(document("mm-router", replicas=2), own_replicas=True))
    assert isinstance(step, Update)
    assert (step.document["spec"]["replicas"], step.keep_replicas) == (4, None)


def test_a_field_changed_by_others_is_named() -> None:
    live = live_of(document())
    live["spec"]["minReadySeconds"] = 9
    (step,) = steps([Child(document(), 1)], live)
    assert step.reason == ".spec.minReadySeconds was changed"


def test_what_is_no_longer_wanted_is_deleted_by_its_uid() -> None:
    (step,) = steps([], live_of(document()))
    assert isinstance(step, Delete)
    assert (step.name, step.uid, step.reason) == ("mm-model-a", "uid-live", "no longer in the spec")


@pytest.mark.parametrize("owners", [[], [{"uid": "other", "controller": True}], [{"uid": UID}]])
def test_what_is_not_controlled_by_this_multimodel_is_not_deleted(owners: list[dict[str, Any]]) -> None:
    live = live_of(document())
    live["metadata"]["ownerReferences"] = owners
    assert steps([], live) == []


def test_a_child_of_an_earlier_multimodel_of_the_name_makes_room() -> None:
    live = live_of(document())
    live["metadata"]["ownerReferences"] = [{"uid": "earlier", "controller": True}]
    (step,) = steps([Child(document(), 1)], live)
    assert isinstance(step, Delete)
    assert step.reason == "belongs to an earlier MultiModel of this name"


def test_what_is_being_deleted_is_waited_for() -> None:
    live = live_of(document())
    live["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert steps([Child(document(minReadySeconds=2), 1)], live) == []
