"""The last command of a model on a real API server: routers write it, the operator never does, and both get along."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.status import CommandAction, LastCommand, command_record

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("operator")]

AT = "2026-01-01T00:00:00Z"


def record(namespace: Any, model: str, action: CommandAction, by: str = "alice", **fields: Any) -> int:
    """Record a command as a router does, with the rights of a router."""
    command = LastCommand(action=action, by=by, at=AT, **fields)
    response = namespace.client.patch(
        namespace.path("multimodels", "mm") + "/status",
        params={"fieldManager": names.command_manager(model), "force": "true"},
        headers={
            "Content-Type": "application/apply-patch+yaml",
            "Impersonate-User": f"system:serviceaccount:{namespace.name}:mm-router",
        },
        content=json.dumps(command_record(namespace.name, "mm", model, command)),
    )
    status: int = response.status_code
    return status


def commands(namespace: Any) -> dict[str, Any]:
    models = namespace.status().get("models", [])
    return {model["name"]: model.get("lastCommand", {}).get("action") for model in models}


@pytest.fixture
def two_models(namespace: Any, eventually: Any, model: Any) -> None:
    namespace.multimodel(model("a"), model("b"))
    eventually("a status", lambda: namespace.status().get("loaded") == "0/2")
    eventually("rights", lambda: "mm-router" in namespace.names("rolebindings"))


def recorded(namespace: Any, eventually: Any, *arguments: Any, **fields: Any) -> None:
    eventually("the router's rights have arrived", lambda: record(namespace, *arguments, **fields) == 200)


def test_each_model_keeps_its_own_last_command(two_models: None, namespace: Any, eventually: Any) -> None:
    recorded(namespace, eventually, "a", CommandAction.UNLOAD, reason="room for b", drain_seconds=1.5)
    recorded(namespace, eventually, "b", CommandAction.WAKE, by="bob")
    assert namespace.model("a")["lastCommand"] == {
        "action": "unload",
        "by": "alice",
        "reason": "room for b",
        "drainSeconds": 1.5,
        "at": AT,
    }
    assert namespace.model("b")["lastCommand"] == {"action": "wake", "by": "bob", "at": AT}
    recorded(namespace, eventually, "a", CommandAction.RELOAD)
    assert namespace.model("a")["lastCommand"] == {"action": "reload", "by": "alice", "at": AT}
    assert commands(namespace) == {"a": "reload", "b": "wake"}


def test_what_the_operator_writes_leaves_commands_alone(two_models: None, namespace: Any, eventually: Any) -> None:
    recorded(namespace, eventually, "a", CommandAction.UNLOAD)
    namespace.scale("mm-model-a", 0)
    eventually("unloaded", lambda: namespace.model("a")["state"] == "unloaded")
    namespace.become_ready("mm-model-b", "mm-router")
    eventually("ready", lambda: namespace.condition("Ready")["status"] == "True")
    assert commands(namespace) == {"a": "unload", "b": None}
    recorded(namespace, eventually, "a", CommandAction.WAKE, by="bob")
    namespace.scale("mm-model-a", 1)
    namespace.become_ready("mm-model-a")
    eventually("loaded", lambda: namespace.model("a")["state"] == "loaded")
    assert commands(namespace) == {"a": "wake", "b": None}


def test_a_command_makes_the_operator_write_nothing(
    two_models: None, namespace: Any, eventually: Any, start_operator: Any
) -> None:
    recorded(namespace, eventually, "a", CommandAction.UNLOAD)
    namespace.become_ready("mm-model-a", "mm-model-b", "mm-router")
    eventually("all is told", lambda: namespace.condition("RouterReady")["message"].startswith("2 of 2"))
    before = namespace.versions()
    another = start_operator(f"--namespace={namespace.name}", "--resync-seconds=0.5", "--log-level=DEBUG")
    eventually("three looks at everything", lambda: another.log.count("mm: in line") >= 3)
    assert namespace.versions() == before


def test_the_operator_owns_no_command(two_models: None, namespace: Any, eventually: Any) -> None:
    recorded(namespace, eventually, "a", CommandAction.UNLOAD)
    entries = namespace.get("multimodels", "mm")["metadata"]["managedFields"]
    owners = [entry["manager"] for entry in entries if "lastCommand" in json.dumps(entry["fieldsV1"])]
    assert owners == [names.command_manager("a")]


def test_a_model_that_leaves_the_spec_takes_its_command_along(
    two_models: None, namespace: Any, eventually: Any, model: Any
) -> None:
    for name in ("a", "b"):
        recorded(namespace, eventually, name, CommandAction.UNLOAD)
    path = namespace.path("multimodels", "mm")
    namespace.patch(path, {"spec": {"models": [model("a")]}})
    eventually("b is in no status", lambda: commands(namespace) == {"a": "unload"})
    assert record(namespace, "b", CommandAction.WAKE) == 422, "a router that still knows b writes nothing"
    assert commands(namespace) == {"a": "unload"}
    namespace.patch(path, {"spec": {"models": [model("a"), model("b")]}})
    eventually("b is back, and nothing is known of it", lambda: commands(namespace) == {"a": "unload", "b": None})
    managers = {entry["manager"] for entry in namespace.get("multimodels", "mm")["metadata"]["managedFields"]}
    assert names.command_manager("b") not in managers


def test_a_router_that_writes_while_its_model_leaves_holds_nothing_up(
    two_models: None, namespace: Any, eventually: Any, model: Any
) -> None:
    recorded(namespace, eventually, "b", CommandAction.UNLOAD)
    with ThreadPoolExecutor(1) as router:
        answers = router.submit(lambda: [record(namespace, "b", CommandAction.WAKE) for _ in range(100)])
        namespace.patch(namespace.path("multimodels", "mm"), {"spec": {"models": [model("a")]}})
    assert set(answers.result()) <= {200, 422}
    eventually("b is in no status", lambda: commands(namespace) == {"a": None})
