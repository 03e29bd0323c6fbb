"""The console's page in a real Chromium, over routers whose model servers are scripted stand-ins.

With MULTIMODEL_SCREENSHOTS naming a folder, the tests leave pictures of the page there.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from multimodel_api.errors import ApiError
from multimodel_api.keys import Action, KeyEntry, key_hash, new_key
from multimodel_api.manifest import MultiModel
from multimodel_router.access import Access
from multimodel_router.console import console_routes
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.processes import ProcessFleet
from multimodel_router.metrics import Metrics
from multimodel_router.upstream import Upstream

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
WIDE, NARROW = (1200, 860), (360, 740)
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
BROKEN = {"reason": "BadWeights", "message": f"model.safetensors is cut short {MARKUP}"}

Until = Callable[[Callable[[], Awaitable[Any]], Any], Awaitable[None]]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not CHROMIUM or not DRIVER:
        missing = "the page's tests need Debian's chromium and chromium-driver; run: make system-packages"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The console in a tab; every call leaves the event loop free for the router, which shares it."""

    def __init__(self, driver: webdriver.Chrome, url: str, until: Until) -> None:
        self._driver = driver
        self._url = url
        self._until = until

    async def open(self, size: tuple[int, int] = WIDE, connection: str = "live") -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        await self._command("Emulation.setDeviceMetricsOverride", metrics)
        await asyncio.to_thread(self._driver.get, f"{self._url}/console")
        await self.shows("#connection", connection)

    async def close(self) -> list[dict[str, Any]]:
        """Leave the page, and return what it complained of; a refused call is no complaint of the page."""
        await self.run("sessionStorage.clear()")
        said = await asyncio.to_thread(self._driver.get_log, "browser")
        await asyncio.to_thread(self._driver.get, "about:blank")
        return [entry for entry in said if entry["source"] != "network"]

    async def run(self, script: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self._driver.execute_script, script, *arguments)

    async def text(self, css: str) -> str | None:
        """Return the text of an element as it can be seen: None for one that is not there, "" for a hidden one."""
        found: str | None = await self.run(
            "const e = document.querySelector(arguments[0]); return e && (e.checkVisibility() ? e.innerText : '')", css
        )
        return found

    async def shows(self, css: str, text: str) -> None:
        await self._until(lambda: self.text(css), text)

    async def shows_part(self, css: str, part: str) -> None:
        async def contains() -> bool:
            return part in (await self.text(css) or "")

        await self._until(contains, True)

    async def card(self, place: int, state: str) -> None:
        """Wait until the model at this place, counted from 1, is shown in a state."""
        await self.shows(f"{card(place)} .state", state)

    async def click(self, css: str) -> None:
        await asyncio.to_thread(self._driver.find_element(By.CSS_SELECTOR, css).click)

    async def type(self, css: str, *keys: str) -> None:
        await asyncio.to_thread(self._driver.find_element(By.CSS_SELECTOR, css).send_keys, *keys)

    async def ask(self, text: str, **fault: Any) -> None:
        """Send a chat message; `fault` goes to the stand-in with it."""
        await self.run(
            """
            const fault = arguments[0], send = window.realFetch ??= window.fetch;
            window.fetch = (path, options) => send(path, options?.body?.includes("messages")
                ? { ...options, body: JSON.stringify({ ...JSON.parse(options.body), standin: fault }) } : options);
            """,
            fault,
        )
        await self.type("#message", text, Keys.ENTER)

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("MULTIMODEL_SCREENSHOTS"):
            await asyncio.to_thread(os.makedirs, folder, exist_ok=True)
            await asyncio.to_thread(self._driver.save_screenshot, str(Path(folder, f"{name}.png")))

    async def _command(self, name: str, parameters: dict[str, Any]) -> None:
        await asyncio.to_thread(self._driver.execute_cdp_cmd, name, parameters)


def card(place: int) -> str:
    return f".model:nth-child({place})"


@pytest.fixture
async def console(
    start_on_processes: Any, chromium: webdriver.Chrome, until: Until
) -> AsyncIterator[Callable[..., Awaitable[tuple[Page, Any]]]]:
    """Starts a router and opens its console; at the end the browser must have nothing to complain of."""
    opened = []

    async def start(models: Sequence[dict[str, Any]], size: tuple[int, int] = WIDE, **spec: Any) -> tuple[Page, Any]:
        router = await start_on_processes(models, **spec)
        page = Page(chromium, router.url, until)
        opened.append(page)
        await page.open(size)
        return page, router

    yield start
    complaints = [complaint for page in opened for complaint in await page.close()]
    assert complaints == []


async def test_every_state_is_shown_with_its_reason(console: Any) -> None:
    page, _ = await console(
        [
            {"name": "abacus", "alias": "math", "min": 1},
            {"name": "scribe"},
            {"name": "broken", "min": 1, "standin": {"fail": BROKEN}},
            {"name": "painter", "diffusion": {"modelId": "org/painter"}, "plain": None},
        ]
    )
    await page.card(1, "loaded")
    await page.card(2, "unloaded")
    await page.card(3, "internal_error")
    await page.card(4, "no_loader_config")
    await page.shows("#summary", "1 of 4 loaded")
    await page.shows(f"{card(1)} .about", "standins/abacus · 1 of 1 ready")
    await page.shows(f"{card(1)} .phases", "starting 100 ms\nloaded in 100 ms")
    await page.shows(f"{card(1)} .default", "default")
    await page.shows(f"{card(2)} .default", "")
    await page.shows(f"{card(3)} .reason", "BadWeights")
    await page.shows_part(f"{card(4)} .message", "'diffusion' cannot be loaded")
    await page.picture("states")


async def test_load_and_unload_are_seen_live(console: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    page, _ = await console([{"name": "abacus", "alias": "math", "standin": {"load_gate": str(gate)}}])
    await page.card(1, "unloaded")
    await page.click('button[aria-label="Load math"]')
    await page.card(1, "reloading")
    await page.shows_part(f"{card(1)} .phases", "so far 100 ms")
    assert await page.run("return document.querySelector('.model progress').position") == 0.5
    await page.picture("loading")
    gate.touch()
    await page.card(1, "loaded")
    await page.shows("#announcement", "math: loaded")
    await page.click('button[aria-label="Unload math"]')
    await page.card(1, "unloaded")
    await page.shows_part(f"{card(1)} .phases", "last load 100 ms")


async def test_a_load_under_way_can_be_called_off(console: Any, tmp_path: Path) -> None:
    page, _ = await console([{"name": "abacus", "standin": {"load_gate": str(tmp_path / "never")}}])
    await page.click('button[aria-label="Load standins/abacus"]')
    await page.card(1, "reloading")
    await page.click('button[aria-label="Unload standins/abacus"]')
    await page.card(1, "unloaded")


async def test_chat_streams_answers_and_keeps_the_conversation(console: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    page, _ = await console([{"name": "abacus", "alias": "math", "min": 1}])
    await page.card(1, "loaded")
    await page.ask("17 + 25", gate=str(gate))
    await page.shows(".assistant .text", "You")
    await page.shows("#chat-status", "math answers")
    gate.touch()
    await page.shows(".assistant .text", "You said: 17 + 25")
    await page.shows_part(".assistant .measure", "first token")
    await page.ask("and 9 + 8")
    await page.shows(".assistant:last-child .text", "You said: and 9 + 8")
    await page.shows("#send", "Send")
    await page.picture("chat")


async def test_a_chat_message_loads_the_model_first(console: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    page, _ = await console([{"name": "abacus", "standin": {"load_gate": str(gate)}}])
    await page.ask("hello")
    await page.card(1, "reloading")
    assert await page.text("#chat-status")
    await page.shows("#stop", "Stop")
    gate.touch()
    await page.shows(".assistant .text", "You said: hello")


async def test_an_answer_can_be_stopped(console: Any, tmp_path: Path, until: Until) -> None:
    cancelled = tmp_path / "cancelled"
    page, _ = await console([{"name": "abacus", "min": 1}])
    await page.card(1, "loaded")
    await page.ask("hello", gate=str(tmp_path / "never"), cancelled=str(cancelled))
    await page.shows(".assistant .text", "You")
    await page.click("#stop")
    await page.shows(".assistant .measure", "stopped")
    await until(lambda: asyncio.to_thread(cancelled.exists), True)


@pytest.mark.parametrize(
    ("standin", "fault", "problem"),
    [({"fail": BROKEN}, {}, "BadWeights"), ({}, {"fault": "break_mid"}, "")],
    ids=["load fails", "answer breaks off"],
)
async def test_an_error_is_shown_in_the_chat(
    console: Any, standin: Any, fault: Any, problem: str, until: Until
) -> None:
    page, _ = await console([{"name": "abacus", "standin": standin}])
    await page.ask("hello", **fault)

    async def failed() -> bool:
        shown = await page.text(".assistant .failed")
        return bool(shown) and problem in shown

    await until(failed, True)
    await page.shows("#send", "Send")


async def test_markup_stays_text(console: Any) -> None:
    page, _ = await console(
        [
            {"name": "abacus", "min": 1, "alias": "<b>math</b>"},
            {"name": "broken", "min": 1, "standin": {"fail": BROKEN}},
        ]
    )
    await page.card(1, "loaded")
    await page.ask(MARKUP)
    await page.shows(".assistant .text", f"You said: {MARKUP}")
    await page.shows("h3", "<b>math</b>")
    await page.shows(f"{card(2)} .message", BROKEN["message"])
    assert await page.run("return document.querySelectorAll('main img, main script, main b').length") == 0
    assert await page.run("return document.title") == "MultiModel console"


async def test_a_narrow_window_needs_no_sideways_scrolling(console: Any) -> None:
    long = {"reason": "BadWeights", "message": "/models/" + "a-very-long-name" * 30}
    models = [{"name": "abacus", "min": 1, "alias": "an-organisation/" + "a-model-with-a-long-name-" * 4}]
    page, _ = await console([*models, {"name": "broken", "min": 1, "standin": {"fail": long}}], NARROW)
    await page.card(2, "internal_error")
    await page.card(1, "loaded")
    await page.ask("a" * 200)
    await page.shows_part(".assistant .text", "You said:")
    assert await page.run("return document.documentElement.scrollWidth") == NARROW[0]
    await page.picture("narrow-chat")
    await page.run("scrollTo(0, 0)")
    await page.picture("narrow")


async def test_requests_become_rates_and_quantiles(console: Any) -> None:
    page, router = await console([{"name": "abacus", "min": 1}])
    await page.card(1, "loaded")
    for _ in range(20):
        message = {"role": "user", "content": "hello"}
        await router.openai.chat.completions.create(model="standins/abacus", messages=[message])
    await page.shows_part(f"{card(1)} .traffic", "first byte p50")
    assert float(await page.text("#rate") or 0) > 0
    assert (await page.text("#p50") or "").endswith("s")
    assert (await page.text("#p99") or "").endswith("s")
    curve = await page.run("return document.querySelector('#rate-curve .line').getAttribute('d')")
    assert "L" in curve


async def test_a_lost_connection_is_told(console: Any) -> None:
    page, router = await console([{"name": "abacus"}])
    assert await page.text("#banner") == ""
    await router.stop()
    await page.shows_part("#banner", "Connection lost")
    await page.shows("#connection", "lost")
    await page.picture("lost")


class Scripted:
    """A console whose router asks for a key, and whose chat is written by the test."""

    def __init__(self, url: str, key: str, chat: "asyncio.Queue[str | None]") -> None:
        self.url = url
        self.key = key
        self.chat = chat


@pytest.fixture
async def scripted(manifest: Callable[..., MultiModel], until: Until) -> AsyncIterator[Scripted]:
    key, chat, upstream = new_key(), asyncio.Queue[str | None](), Upstream()
    entry = KeyEntry.model_validate({"hash": key_hash(key), "models": ["*"], "actions": list(Action)})
    fleet = ProcessFleet(manifest([{"name": "abacus", "alias": "math"}]).spec, upstream)
    app = FastAPI()
    app.include_router(console_routes(fleet, Metrics(), Probe(upstream), Access({"alice": entry})))
    app.add_exception_handler(ApiError, lambda _, error: JSONResponse(error.body.model_dump(), error.status))

    async def lines() -> AsyncIterator[str]:
        while (line := await chat.get()) is not None:
            yield f"{line}\n\n"

    @app.post("/v1/chat/completions")
    async def complete() -> StreamingResponse:
        return StreamingResponse(lines(), media_type="text/event-stream")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await until(started, True)
    yield Scripted(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", key, chat)
    server.should_exit = True
    await serving
    await fleet.stop()
    upstream.close()


@pytest.fixture
async def keyed(scripted: Scripted, chromium: webdriver.Chrome, until: Until) -> AsyncIterator[Page]:
    page = Page(chromium, scripted.url, until)
    await page.open(connection="lost")
    yield page
    assert await page.close() == []


async def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(keyed: Page, scripted: Scripted) -> None:
    await keyed.shows_part("#banner", "No API key was given")
    await keyed.shows("#key-title", "API key")
    await keyed.picture("key")
    await keyed.type("#key", "wrong", Keys.ENTER)
    await keyed.shows_part("#banner", "not known here")
    await keyed.type("#key", scripted.key, Keys.ENTER)
    await keyed.card(1, "unloaded")
    await keyed.shows("#banner", "")
    await keyed.open()
    await keyed.card(1, "unloaded")


async def test_the_chat_shows_how_a_load_gets_on(keyed: Page, scripted: Scripted) -> None:
    await keyed.type("#key", scripted.key, Keys.ENTER)
    await keyed.card(1, "unloaded")
    await keyed.ask("hello")
    scripted.chat.put_nowait(": reading weights: 1.0 of 4.0 GB")
    await keyed.shows("#chat-status", "reading weights: 1.0 of 4.0 GB")
    await keyed.picture("waiting")
    scripted.chat.put_nowait('data: {"choices": [{"delta": {"reasoning_content": "A greeting."}}]}')
    scripted.chat.put_nowait('data: {"choices": [{"delta": {"content": "Hello."}}]}')
    await keyed.shows(".assistant .thought", "A greeting.")
    await keyed.shows(".assistant .text", "Hello.")
    await keyed.shows("#chat-status", "math answers")
    scripted.chat.put_nowait('data: {"error": {"message": "The engine died."}}')
    await keyed.shows(".assistant .failed", "The engine died.")
    scripted.chat.put_nowait(None)


async def test_an_answer_without_its_end_is_told(keyed: Page, scripted: Scripted) -> None:
    await keyed.type("#key", scripted.key, Keys.ENTER)
    await keyed.card(1, "unloaded")
    await keyed.ask("hello")
    scripted.chat.put_nowait('data: {"choices": [{"delta": {"content": "Hel"}}]}')
    scripted.chat.put_nowait(None)
    await keyed.shows(".assistant .failed", "The answer was cut off before its end.")
