"""One behaviour over both fleets: models listed, loaded on demand, unloaded, reloaded, and honest about failures."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

MATH = {"name": "abacus", "alias": "math/small"}
WORDS = {"name": "scribe"}
WORDS_ID = "standins/scribe"
BAD_WEIGHTS = {"reason": "BadWeights", "message": "model.safetensors: the file is truncated; download it again"}

Start = Callable[..., Awaitable[Any]]


def chat(model: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    return {"messages": [{"role": "user", "content": "good morning"}]} | named | more


async def lifecycle(router: Any, action: str, model_id: str) -> tuple[int, dict[str, Any]]:
    reply = await router.http.post(f"/v1/models/{action}", json={"model_id": model_id})
    return reply.status_code, reply.json()


async def test_models_are_listed_default_first_and_each_with_its_status(start_router: Start) -> None:
    router = await start_router([MATH | {"min": 1}, WORDS])
    await router.until("math/small", "loaded")
    listed = (await router.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [(card["id"], card.get("status")) for card in listed["data"]] == [
        ("default", None),
        ("math/small", "loaded"),
        (WORDS_ID, "unloaded"),
    ]
    assert {(card["object"], card["owned_by"]) for card in listed["data"]} == {("model", "local")}
    assert [model.id async for model in router.openai.models.list()] == ["default", "math/small", WORDS_ID]


async def test_a_model_has_a_page_under_each_of_its_ids(start_router: Start) -> None:
    router = await start_router([MATH, WORDS])
    for model_id in ("math/small", "standins/abacus", "default"):
        card = (await router.http.get(f"/v1/models/{model_id}")).json()
        assert (card["id"], card["canonical_id"], card["status"]) == ("math/small", "standins/abacus", "unloaded")
    missing = await router.http.get("/v1/models/math")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("asked", ["math/small", "standins/abacus", "default", None])
async def test_a_request_wakes_the_model_that_it_means(start_router: Start, asked: str | None) -> None:
    router = await start_router([WORDS, MATH], defaultModel="math/small")
    reply = await router.http.post("/v1/chat/completions", json=chat(asked))
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == "math/small"
    assert reply.json()["choices"][0]["message"]["content"] == "You said: good morning"
    assert await router.status("math/small") == "loaded"
    assert await router.status(WORDS_ID) == "unloaded"


async def test_all_who_come_while_a_model_loads_are_answered(start_router: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    router = await start_router([MATH | {"standin": {"load_gate": str(gate)}}])
    requests = [asyncio.create_task(router.http.post("/v1/chat/completions", json=chat())) for _ in range(8)]
    await router.until("default", "reloading")
    late = asyncio.create_task(router.http.post("/v1/chat/completions", json=chat("math/small")))
    reload = asyncio.create_task(lifecycle(router, "reload", "math/small"))
    await asyncio.wait((late, *requests), timeout=0.1)
    assert not any(request.done() for request in (late, reload, *requests))
    gate.touch()
    replies = await asyncio.gather(late, *requests)
    assert [reply.status_code for reply in replies] == [200] * 9
    assert await reload == (200, {"model_id": "math/small", "status": "loaded"})


async def test_the_page_of_a_loading_model_shows_its_progress(start_router: Start, tmp_path: Path, until: Any) -> None:
    gate = tmp_path / "gate"
    router = await start_router([MATH | {"min": 1, "standin": {"load_gate": str(gate)}}])

    async def phase() -> str | None:
        card = (await router.http.get("/v1/models/math/small")).json()
        return card.get("progress", {}).get("phase")

    await until(phase, "reading_weights")
    gate.touch()
    await router.until("math/small", "loaded")
    assert await phase() is None


async def test_unload_and_reload(start_router: Start) -> None:
    router = await start_router([MATH | {"min": 1}, WORDS])
    await router.until("math/small", "loaded")
    assert await lifecycle(router, "status", "default") == (200, {"model_id": "default", "status": "loaded"})
    for _ in range(2):  # unloading an unloaded model is no error
        unloaded = await lifecycle(router, "unload", "standins/abacus")
        assert unloaded == (200, {"model_id": "standins/abacus", "status": "unloaded"})
        assert await router.status("math/small") == "unloaded"
    for _ in range(2):  # nor is reloading a loaded one
        assert await lifecycle(router, "reload", "default") == (200, {"model_id": "default", "status": "loaded"})
    assert (await router.http.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_unload_lets_running_requests_finish_and_the_next_one_wakes_the_model(
    start_router: Start, tmp_path: Path
) -> None:
    router = await start_router([MATH | {"min": 1}])
    await router.until("default", "loaded")
    gate = tmp_path / "gate"
    body = chat(stream=True, standin={"gate": str(gate)})
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as running:
        lines = running.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        assert await lifecycle(router, "unload", "default") == (200, {"model_id": "default", "status": "unloaded"})
        gate.touch()
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
    assert (await router.http.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_unloads_that_race_with_requests_lose_none(start_router: Start) -> None:
    router = await start_router([MATH])
    for _ in range(3):
        requests = [asyncio.create_task(router.http.post("/v1/chat/completions", json=chat())) for _ in range(4)]
        await asyncio.sleep(0)
        await lifecycle(router, "unload", "default")
        assert [reply.status_code for reply in await asyncio.gather(*requests)] == [200] * 4


@pytest.mark.parametrize("action", ["unload", "reload", "status"])
async def test_lifecycle_of_an_unknown_model(start_router: Start, action: str) -> None:
    router = await start_router([MATH])
    assert await lifecycle(router, action, "nobody/x") == (404, {"model_id": "nobody/x", "status": "not_found"})
    assert [card["id"] for card in (await router.http.get("/v1/models")).json()["data"]] == ["default", "math/small"]


@pytest.mark.parametrize("action", ["unload", "reload", "status"])
async def test_lifecycle_of_a_model_that_nothing_can_load(start_router: Start, action: str) -> None:
    speech = {"name": "voice", "plain": None, "speech": {"modelId": "standins/voice"}}
    router = await start_router([MATH, speech])
    code, reply = await lifecycle(router, action, "standins/voice")
    assert (code, reply["status"]) == (409, "no_loader_config")
    assert "'speech' cannot be loaded" in reply["error"]
    refused = await router.http.post("/v1/chat/completions", json=chat("standins/voice"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "UnsupportedSource")


async def test_an_unknown_model_is_a_404_that_names_the_known_ones(start_router: Start) -> None:
    router = await start_router([MATH, WORDS])
    with pytest.raises(openai.NotFoundError) as caught:
        await router.openai.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'math/small', 'standins/scribe'" in str(caught.value)


async def test_a_load_failure_reaches_those_who_wait(start_router: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    router = await start_router([MATH | {"standin": {"load_gate": str(gate), "fail": BAD_WEIGHTS}}])
    waiting = asyncio.create_task(router.http.post("/v1/chat/completions", json=chat()))
    await router.until("default", "reloading")
    gate.touch()
    reply = await waiting
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (503, "BadWeights", "model")
    assert BAD_WEIGHTS["message"] in error["message"]
    code, status = await lifecycle(router, "status", "math/small")
    assert (code, status["status"]) == (500, "internal_error")
    assert status["error"] == f"BadWeights: {BAD_WEIGHTS['message']}"
    card = (await router.http.get("/v1/models/math/small")).json()
    assert card["failure"] == BAD_WEIGHTS


async def test_reload_tries_a_failed_model_again(start_router: Start, tmp_path: Path) -> None:
    repaired = tmp_path / "repaired"
    router = await start_router([MATH | {"standin": {"fail": BAD_WEIGHTS, "fail_unless": str(repaired)}}])
    code, reply = await lifecycle(router, "reload", "default")
    assert (code, reply["status"], reply["error"]) == (500, "internal_error", f"BadWeights: {BAD_WEIGHTS['message']}")
    repaired.touch()
    assert await lifecycle(router, "reload", "default") == (200, {"model_id": "default", "status": "loaded"})


async def test_a_wait_ends_in_time(start_router: Start, tmp_path: Path) -> None:
    never = {"standin": {"load_gate": str(tmp_path / "never")}}
    router = await start_router([MATH | never], wait_seconds=0.5)
    reply = await router.http.post("/v1/chat/completions", json=chat())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "LoadTimeout")
    assert int(reply.headers["retry-after"]) > 0
    code, told = await lifecycle(router, "reload", "default")
    assert (code, told["status"]) == (500, "internal_error")
    assert told["error"].startswith("LoadTimeout: not ready after 0.5 s")


async def test_a_stream_through_the_openai_client(start_router: Start) -> None:
    router = await start_router([MATH])
    stream = await router.openai.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "good morning"}], stream=True
    )
    pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert pieces == ["You", " said:", " good", " morning"]


async def test_two_aliases_of_one_model_are_two_models(start_router: Start) -> None:
    twice = [{"name": n, "alias": n, "plain": {"modelId": "standins/same"}} for n in ("first", "second")]
    router = await start_router(twice)
    reply = await router.http.post("/v1/chat/completions", json=chat("second"))
    assert reply.json()["model"] == "second"
    assert (await router.http.post("/v1/chat/completions", json=chat("standins/same"))).status_code == 404


async def test_several_replicas_share_the_load(start_router: Start, tmp_path: Path, until: Any) -> None:
    router = await start_router([MATH | {"min": 2}])

    async def ready() -> int:
        return len(router.fleet.view("abacus").ready)

    gate = tmp_path / "gate"
    body = chat(stream=True, standin={"gate": str(gate)})
    await until(ready, 2)
    async with router.http.stream("POST", "/v1/chat/completions", json=body) as first:
        assert first.status_code == 200
        answered = await router.http.post("/v1/chat/completions", json=chat())
        assert answered.status_code == 200
        gate.touch()
        assert json.loads((await first.aread()).split(b"\n\n")[0].removeprefix(b"data: "))["model"] == "math/small"
