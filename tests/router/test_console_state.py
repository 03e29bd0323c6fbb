"""The console's routes without a browser: the files' headers, the state document, and who may read it."""

from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from multimodel_api.errors import ApiError
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.keys import Action, KeyEntry, key_hash, new_key
from multimodel_api.manifest import Model, MultiModel
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.state import ModelState
from multimodel_router.access import Access
from multimodel_router.console import ASSETS, console_routes
from multimodel_router.console.state import console_model
from multimodel_router.console.traffic import Traffic, read_traffic
from multimodel_router.fleet import Endpoint, ModelView
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.metrics import Metrics
from multimodel_router.upstream import Upstream

MATH = Model.model_validate({"name": "abacus", "alias": "math", "plain": {"modelId": "org/abacus"}})
KEY = new_key()
ENTRY = KeyEntry.model_validate({"hash": key_hash(KEY), "models": ["math"], "actions": [Action.INFER]})
FAILURE = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="model.safetensors is cut short")
LOADING = LoadProgress(phase=LoadPhase.READING_WEIGHTS, bytes_done=1, bytes_total=4)


@pytest.fixture
async def client(manifest: Callable[..., MultiModel]) -> AsyncIterator[Callable[[Access], httpx.AsyncClient]]:
    """Returns a client of the console alone, over two models that nobody has started."""
    upstream = Upstream()
    fleet = ProcessFleet(manifest([{"name": "abacus", "alias": "math"}, {"name": "scribe"}]).spec, upstream)

    def make(access: Access) -> httpx.AsyncClient:
        app = FastAPI()
        app.include_router(console_routes(fleet, Metrics(), Probe(upstream), access))
        app.add_exception_handler(ApiError, lambda _, error: JSONResponse(error.body.model_dump(), error.status))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")

    yield make
    await fleet.stop()
    upstream.close()


@pytest.mark.parametrize(
    ("path", "media_type"), list(zip(ASSETS, ("text/html", "text/css", "text/javascript"), strict=True))
)
async def test_files_are_open_to_all_and_sent_once(client: Any, path: str, media_type: str) -> None:
    async with client(Access({"alice": ENTRY})) as http:
        whole = await http.get(path)
        assert whole.status_code == HTTPStatus.OK
        assert whole.headers["content-type"] == f"{media_type}; charset=utf-8"
        again = await http.get(path, headers={"if-none-match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (HTTPStatus.NOT_MODIFIED, b"")
        stale = await http.get(path, headers={"if-none-match": '"another"'})
        assert stale.content == whole.content


async def test_the_page_may_run_and_load_nothing_foreign(client: Any) -> None:
    async with client(Access.open()) as http:
        page = await http.get("/console/", follow_redirects=True)
    policy = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    for trace in ("://", "<style", " style=", " onclick=", "<script>"):
        assert trace not in page.text.replace("xmlns='http://www.w3.org/2000/svg'", "")


async def test_the_state_asks_for_a_key_and_shows_what_it_may_see(client: Any) -> None:
    async with client(Access({"alice": ENTRY})) as http:
        assert (await http.get("/console/state")).status_code == HTTPStatus.UNAUTHORIZED
        state = await http.get("/console/state", headers={"authorization": f"Bearer {KEY}"})
    assert [model["id"] for model in state.json()["models"]] == ["math"]
    assert state.headers["cache-control"] == "no-store"


async def test_without_keys_the_state_shows_all_models_in_order(client: Any) -> None:
    async with client(Access.open()) as http:
        models = (await http.get("/console/state")).json()["models"]
    assert [(model["id"], model["default"], model["state"]) for model in models] == [
        ("math", True, "unloaded"),
        ("standins/scribe", False, "unloaded"),
    ]


HOME = Endpoint("127.0.0.1", 1)
VIEWS = [
    (ModelView(desired=1, ready=(HOME,)), ModelState.LOADED, None, None),
    (ModelView(desired=2, ready=(HOME,), failure=FAILURE), ModelState.LOADED, None, FAILURE),
    (ModelView(desired=1, progress=LOADING), ModelState.RELOADING, LOADING, None),
    (ModelView(desired=1, failure=FAILURE, progress=LOADING), ModelState.INTERNAL_ERROR, LOADING, FAILURE),
    (ModelView(desired=0, failure=FAILURE, progress=LOADING), ModelState.UNLOADED, None, None),
    (ModelView(desired=None, failure=FAILURE), ModelState.NO_LOADER_CONFIG, None, FAILURE),
]


@pytest.mark.parametrize(("view", "state", "progress", "failure"), VIEWS)
def test_a_model_is_shown_as_the_fleet_sees_it(
    view: ModelView, state: ModelState, progress: LoadProgress | None, failure: LoadFailure | None
) -> None:
    shown = console_model(MATH, view, default=True, last_load=None, traffic=Traffic())
    assert (shown.id, shown.canonical_id, shown.ready, shown.wanted) == (
        "math",
        "org/abacus",
        len(view.ready),
        view.desired,
    )
    assert (shown.state, shown.progress, shown.failure) == (state, progress, failure)


@pytest.mark.parametrize(("kind", "chats"), [("plain", True), ("vision", True), ("embedding", False)])
def test_only_models_that_talk_are_offered_for_chat(kind: str, chats: bool) -> None:
    model = Model.model_validate({"name": "m", kind: {"modelId": "org/m"}})
    shown = console_model(model, ModelView(desired=0), default=False, last_load=None, traffic=Traffic())
    assert shown.chats is chats


def test_traffic_is_what_the_routers_metrics_say() -> None:
    metrics = Metrics()
    metrics.requests.labels("abacus", "200").inc(3)
    metrics.requests.labels("abacus", "503").inc()
    metrics.in_flight.labels("abacus").set(2)
    metrics.waiting.labels("abacus").set(1)
    metrics.first_byte_seconds.labels("abacus").observe(0.02)
    metrics.first_byte_seconds.labels("abacus").observe(1000)
    traffic = read_traffic(metrics.registry.collect())
    assert list(traffic) == ["abacus"]
    found = traffic["abacus"]
    assert (found.requests, found.in_flight, found.waiting) == ({"200": 3, "503": 1}, 2, 1)
    assert (found.first_byte["0.01"], found.first_byte["0.025"], found.first_byte["+Inf"]) == (0, 1, 2)


async def test_a_loaded_model_tells_how_its_load_went(start_on_processes: Any) -> None:
    router = await start_on_processes([{"name": "abacus", "min": 1}, {"name": "scribe"}])
    await router.until("standins/abacus", "loaded")
    loaded, unloaded = (await router.http.get("/console/state")).json()["models"]
    assert loaded["last_load"]["seconds"] == {"starting": 0.1}
    assert unloaded["last_load"] is None
