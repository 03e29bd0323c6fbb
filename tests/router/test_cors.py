"""Which web pages may call the router from their visitors' browsers."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

Start = Callable[..., Awaitable[Any]]

OURS, THEIRS = "https://chat.example.org", "https://elsewhere.example.org"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
PATHS = ("/v1/chat/completions", "/v1/models")
ASKING = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}


@pytest.fixture
def start(start_on_processes: Start) -> Callable[..., Awaitable[Any]]:
    async def start_router(*origins: str) -> Any:
        return await start_on_processes([{"name": "abacus", "alias": "math"}], settings={"cors_origins": origins})

    return start_router


def cors_headers(reply: Any) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("path", PATHS)
async def test_a_browser_that_asks_first_hears_what_it_may_do(start: Start, path: str) -> None:
    router = await start(OURS)
    reply = await router.http.options(path, headers=ASKING | {"origin": OURS})
    assert (reply.status_code, reply.content) == (204, b"")
    assert cors_headers(reply) == {
        "access-control-allow-origin": OURS,
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization, x-stainless-os",
        "access-control-max-age": "600",
        "access-control-expose-headers": "x-request-id, retry-after",
    }
    assert reply.headers["vary"] == "origin"


async def test_every_answer_says_that_the_page_may_read_it(start: Start) -> None:
    router = await start(OURS)
    origin = {"origin": OURS}
    replies = [
        await router.http.get("/v1/models", headers=origin),
        await router.http.post("/v1/chat/completions", json=CHAT, headers=origin),
        await router.http.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=origin),
        await router.http.post("/v1/chat/completions", json=CHAT | {"model": "nope"}, headers=origin),
        await router.http.get("/nowhere", headers=origin),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 404, 404]
    assert {reply.headers["access-control-allow-origin"] for reply in replies} == {OURS}
    assert {reply.headers["access-control-expose-headers"] for reply in replies} == {"x-request-id, retry-after"}


@pytest.mark.parametrize("allowed", [(), (OURS,)])
async def test_other_pages_are_told_nothing(start: Start, allowed: tuple[str, ...]) -> None:
    router = await start(*allowed)
    for origin in (THEIRS, "null", f"{OURS}.evil.example", OURS.upper()):
        for path in PATHS:
            asked = await router.http.options(path, headers=ASKING | {"origin": origin})
            assert (asked.status_code, cors_headers(asked)) == (405, {})
        reply = await router.http.get("/v1/models", headers={"origin": origin})
        assert (reply.status_code, cors_headers(reply)) == (200, {})


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_form_of_another_page_changes_nothing(start: Start, site: str) -> None:
    router = await start(OURS)
    for path, body in (("/v1/models/reload", {"model_id": "math"}), ("/v1/chat/completions", CHAT)):
        reply = await router.http.post(path, json=body, headers={"origin": THEIRS, "sec-fetch-site": site})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert await router.status("math") == "unloaded"
    ours = await router.http.post(
        "/v1/models/reload", json={"model_id": "math"}, headers={"origin": OURS, "sec-fetch-site": site}
    )
    assert ours.status_code == 200


async def test_all_origins_can_be_allowed(start: Start) -> None:
    router = await start("*")
    reply = await router.http.get("/v1/models", headers={"origin": THEIRS})
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "vary" not in reply.headers
    asked = await router.http.options("/v1/chat/completions", headers=ASKING | {"origin": THEIRS})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*")


async def test_who_is_no_browser_sees_nothing_of_it(start: Start) -> None:
    router = await start(OURS)
    reply = await router.http.get("/v1/models")
    assert cors_headers(reply) == {}
