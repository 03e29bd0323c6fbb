"""The product on a real node, as its users meet it: helm, kubectl, and the official OpenAI client."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
LABEL = "multimodel.dev/multimodel=quickstart"

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
ABOUT = [{"role": "user", "content": "Tell me about yourself."}]
SPELL = [{"role": "user", "content": "Spell lemon."}]


def ask(client: openai.OpenAI, messages: list[Any], **fields: Any) -> str:
    answer = client.chat.completions.create(messages=messages, **{"model": "default", **fields})
    return answer.choices[0].message.content or ""


def lifecycle(client: openai.OpenAI, action: str, model_id: str) -> httpx.Response:
    return httpx.post(f"{client.base_url}models/{action}", json={"model_id": model_id}, timeout=240, trust_env=False)


def test_models_are_listed_default_first(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["default", "math", "words"]
    assert [model.model_extra.get("status") for model in listed] == [None, "loaded", "loaded"]


@pytest.mark.parametrize("model_id", ["math", "examples/models/abacus", "default"])
def test_chat_by_alias_canonical_id_and_default(client: openai.OpenAI, model_id: str) -> None:
    assert "42" in ask(client, SUM, model=model_id)


def test_chat_without_a_model(client: openai.OpenAI) -> None:
    answer = httpx.post(f"{client.base_url}chat/completions", json={"messages": SUM}, timeout=60, trust_env=False)
    assert "42" in answer.json()["choices"][0]["message"]["content"]


def test_chat_with_the_other_model(client: openai.OpenAI) -> None:
    assert "l-e-m-o-n" in ask(client, SPELL, model="words").lower().replace(" ", "")


def test_streaming_equals_the_whole_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="math", messages=ABOUT, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == ask(client, ABOUT, model="math", temperature=0)
    assert len([chunk for chunk in chunks if chunk.choices]) > 5
    assert chunks[-1].usage is not None


def test_unload_then_a_chat_brings_it_back(quickstart: Any, client: openai.OpenAI, wait_for: Any) -> None:
    reply = lifecycle(client, "unload", "words")
    assert (reply.status_code, reply.json()) == (200, {"model_id": "words", "status": "unloaded"})
    deployment = quickstart.get("deployment", "quickstart-model-scribe")
    assert deployment["spec"]["replicas"] == 0
    wait_for("the pod is gone", lambda: not quickstart.pods("scribe"))
    assert lifecycle(client, "status", "words").json()["status"] == "unloaded"
    wait_for("the resource says so", lambda: loaded(quickstart) == "1/2")
    assert quickstart.is_ready("quickstart"), "an unloaded model is no fault"

    answers: list[str] = []
    waiters = [threading.Thread(target=lambda: answers.append(ask(client, SPELL, model="words"))) for _ in range(4)]
    for waiter in waiters:
        waiter.start()
    for waiter in waiters:
        waiter.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert quickstart.get("deployment", "quickstart-model-scribe")["spec"]["replicas"] == 1


def test_reload(quickstart: Any, client: openai.OpenAI, wait_for: Any) -> None:
    lifecycle(client, "unload", "words")
    wait_for("the pod is gone", lambda: not quickstart.pods("scribe"))
    reply = lifecycle(client, "reload", "words")
    assert (reply.status_code, reply.json()) == (200, {"model_id": "words", "status": "loaded"})


def test_unknown_ids(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'math', 'words'"):
        ask(client, SUM, model="nope")
    assert lifecycle(client, "unload", "nope").status_code == 404
    assert lifecycle(client, "status", "nope").json()["status"] == "not_found"


def test_a_killed_engine_is_rebooted_in_its_pod(quickstart: Any, client: openai.OpenAI, wait_for: Any) -> None:
    before = wait_for("a ready pod", lambda: quickstart.ready_pod("abacus"))
    _, engine = quickstart.processes("math")
    engine.kill()
    assert "42" in ask(client, SUM, model="math")
    after = wait_for("the pod is ready", lambda: quickstart.ready_pod("abacus"))
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    logs = quickstart.node.kubectl("logs", after["metadata"]["name"])
    for line in (
        "Beginning dummy run.",
        "Dummy run completed in ",
        "Engine examples/models/abacus is dead, rebooting",
        "Successfully rebooted engine examples/models/abacus",
    ):
        assert line in logs


def test_a_killed_server_is_restarted_by_the_kubelet(quickstart: Any, client: openai.OpenAI, wait_for: Any) -> None:
    before = wait_for("a ready pod", lambda: quickstart.ready_pod("abacus"))
    quickstart.processes("math")[0].kill()
    assert "42" in ask(client, SUM, model="math")
    after = wait_for("the pod is ready", lambda: quickstart.ready_pod("abacus"))
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 1


@contextmanager
def steady_requests(client: openai.OpenAI) -> Iterator[list[str]]:
    """Ask one question after the other while the block runs; yields what went wrong."""
    wrong: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                if "42" not in ask(client, SUM, model="math"):
                    wrong.append("a wrong answer")
            except openai.OpenAIError as error:
                wrong.append(repr(error))

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        yield wrong
    finally:
        stop.set()
        asker.join()


def written(quickstart: Any) -> dict[str, str]:
    """Return a mark of every object that the operator writes, which changes when somebody writes its wishes."""
    resource = quickstart.get("mm", "quickstart")["metadata"]
    marks = {"MultiModel": resource["resourceVersion"]}
    for item in quickstart.get("deployments,services,serviceaccounts,roles,rolebindings", "-l", LABEL)["items"]:
        meta = item["metadata"]
        marks[f"{item['kind']}/{meta['name']}"] = str(meta.get("generation", meta["resourceVersion"]))
    return marks


def test_a_restarted_operator_writes_nothing(quickstart: Any, client: openai.OpenAI, wait_for: Any) -> None:
    kubectl = quickstart.node.kubectl
    before = written(quickstart)
    pods = quickstart.names("pods", "-n", "multimodel")
    with steady_requests(client) as wrong:
        kubectl("-n", "multimodel", "delete", "pod", *pods)
        kubectl("-n", "multimodel", "rollout", "status", "deployment/multimodel-operator", "--timeout=180s")
    assert wrong == []
    assert written(quickstart) == before

    lifecycle(client, "unload", "words")  # what it then says of this model proves that it has looked
    wait_for("the new operator sees the unload", lambda: loaded(quickstart) == "1/2")
    lifecycle(client, "reload", "words")
    wait_for("the new operator sees the reload", lambda: loaded(quickstart) == "2/2")
    after = written(quickstart)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"MultiModel", "Deployment/quickstart-model-scribe"}


def loaded(quickstart: Any) -> str:
    return str(quickstart.get("mm", "quickstart")["status"]["loaded"])


def test_restarted_routers_lose_no_request(quickstart: Any, client: openai.OpenAI) -> None:
    with steady_requests(client) as wrong:
        quickstart.node.kubectl("rollout", "restart", "deployment/quickstart-router")
        quickstart.node.kubectl("rollout", "status", "deployment/quickstart-router", "--timeout=180s")
    assert wrong == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defaultModel": "nope"}, "defaultModel must be the alias or the model id of one of the models"),
        ({"models": [{"name": "a", "plain": {"modelId": "a"}, "vision": {"modelId": "a"}}]}, "exactly one source"),
        (
            {
                "models": [{"name": n, "alias": "same", "plain": {"modelId": n}} for n in ("a", "b")],
                "defaultModel": "a",
            },
            "two models have the same API id",
        ),
    ],
)
def test_kubectl_apply_refuses_a_wrong_resource(quickstart: Any, change: dict[str, Any], words: str) -> None:
    wrong = yaml.safe_load(QUICKSTART.read_text())
    wrong["metadata"]["name"] = "wrong"
    wrong["spec"] |= change
    with pytest.raises(subprocess.CalledProcessError, match=words):
        quickstart.node.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(wrong))


def test_delete_leaves_nothing(quickstart: Any, wait_for: Any) -> None:
    quickstart.node.kubectl("delete", "-f", str(QUICKSTART))
    kinds = "deployments,replicasets,pods,services,endpointslices,serviceaccounts,roles,rolebindings,configmaps"
    wait_for("everything is gone", lambda: not quickstart.names(kinds, "-l", LABEL))
    assert quickstart.processes("math") == []
