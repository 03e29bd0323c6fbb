"""An endpoint takes requests only while it says for itself that it serves the model."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.status import LastCommand
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, Endpoint, ModelView
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.vetted import MAX_PAUSE, VettedFleet
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics
from multimodel_router.upstream import Upstream

SPEC = MultiModelSpec.model_validate(
    {
        "models": [
            {"name": "m", "alias": "math", "plain": {"modelId": "x/math"}},
            {"name": "n", "plain": {"modelId": "n"}},
        ]
    }
)
OURS = {"model": "math", "canonical_id": "x/math", "boot": "1", "phase": "ready"}


class Address:
    """An address where something says that it serves a model; `says` is its answer, None for a 503."""

    def __init__(self) -> None:
        self.says: dict[str, Any] | None = OURS
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (await reader.readuntil(b"\r\n\r\n")).startswith(f"GET {names.READY_PATH}".encode()):
                self.asked += 1
                status, body = (503, b"{}") if self.says is None else (200, json.dumps(self.says).encode())
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class BelievingFleet:
    """What a cluster claims: it believes whatever the test says."""

    catalog = Catalog(SPEC)

    def __init__(self) -> None:
        self.synced = True
        self.claims: dict[str, ModelView] = {}
        self.changes = Changes()

    def claim(self, *endpoints: Endpoint, model: str = "m") -> None:
        self.claims[model] = ModelView(desired=1, ready=endpoints)
        self.changes.notify()

    def view(self, model: str) -> ModelView:
        return self.claims.get(model, ModelView(desired=0))

    async def scale(self, model: str, replicas: int) -> None: ...

    async def record(self, model: str, said: LastCommand) -> None: ...

    async def changed(self) -> None:
        await self.changes.wait()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Vetted:
    """A vetted fleet, what it is told, and where it asks."""

    def __init__(self, address: Address, endpoint: Endpoint) -> None:
        self.address = address
        self.endpoint = endpoint
        self.believing = BelievingFleet()
        self.loads = LoadHistory()
        self.metrics = Metrics()
        self.upstream = Upstream()
        self.fleet = VettedFleet(self.believing, Probe(self.upstream), self.loads, self.metrics)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once `holds`: after a change, or after a question that changed nothing."""
        async with asyncio.timeout(5):
            while not holds():
                await asyncio.wait((asyncio.ensure_future(self.fleet.changed()),), timeout=0.02)

    async def until_ready(self, *endpoints: Endpoint) -> None:
        await self.until(lambda: self.fleet.view("m").ready == endpoints)


@pytest.fixture
async def vetted() -> AsyncIterator[Vetted]:
    address = Address()
    async with await asyncio.start_server(address.serve, "127.0.0.1", 0) as server:
        made = Vetted(address, Endpoint(*server.sockets[0].getsockname()))
        await made.fleet.start()
        yield made
        await made.fleet.stop()
        made.upstream.close()


async def test_an_endpoint_counts_once_it_says_that_it_serves_the_model(vetted: Vetted) -> None:
    vetted.address.says = None
    vetted.believing.claim(vetted.endpoint)
    await vetted.until(lambda: vetted.address.asked >= 2)
    assert vetted.fleet.view("m").ready == ()
    vetted.address.says = OURS
    await vetted.until_ready(vetted.endpoint)


@pytest.mark.parametrize(
    "says",
    [OURS | {"model": "words"}, OURS | {"canonical_id": "x/other"}, {"phase": "ready"}, {"no": "readiness"}],
    ids=str,
)
async def test_another_model_at_a_reused_address_is_never_used(vetted: Vetted, says: dict[str, Any]) -> None:
    vetted.address.says = says
    vetted.believing.claim(vetted.endpoint)
    await vetted.until(lambda: vetted.address.asked >= 3)
    assert vetted.fleet.view("m").ready == ()


async def test_a_model_that_nobody_has_looked_at_yet_has_no_endpoints(vetted: Vetted) -> None:
    vetted.believing.claims["later"] = ModelView(desired=1, ready=(vetted.endpoint,))
    assert vetted.fleet.view("later") == ModelView(desired=1)


async def test_an_ejected_endpoint_is_gone_at_once_and_back_when_it_says_so_again(vetted: Vetted) -> None:
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    vetted.address.says = None
    asked = vetted.address.asked
    vetted.fleet.eject("m", vetted.endpoint, "broken")
    assert vetted.fleet.view("m").ready == ()
    assert vetted.metrics.ejections.labels("m", "broken")._value.get() == 1
    await vetted.until(lambda: vetted.address.asked > asked)
    assert vetted.fleet.view("m").ready == ()
    vetted.address.says = OURS
    await vetted.until_ready(vetted.endpoint)


async def test_an_endpoint_of_another_model_is_not_ejected_with_it(vetted: Vetted) -> None:
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    vetted.fleet.eject("n", vetted.endpoint, "broken")
    assert vetted.fleet.view("m").ready == (vetted.endpoint,)


async def test_one_that_fails_again_and_again_is_left_alone_for_longer_and_longer(vetted: Vetted) -> None:
    vetted.believing.claim(vetted.endpoint)
    pauses = []
    for _ in range(4):
        await vetted.until_ready(vetted.endpoint)
        began = asyncio.get_running_loop().time()
        vetted.fleet.eject("m", vetted.endpoint, "unavailable")
        await vetted.until_ready(vetted.endpoint)
        pauses.append(asyncio.get_running_loop().time() - began)
    assert pauses[0] < 0.05 <= pauses[1] < pauses[2] < pauses[3] < MAX_PAUSE
    assert pauses[3] >= 0.2


async def test_an_endpoint_that_went_is_forgotten(vetted: Vetted) -> None:
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    vetted.fleet.eject("m", vetted.endpoint, "broken")
    vetted.believing.claim()
    await vetted.until_ready()
    await vetted.until(lambda: not (vetted.fleet._vetting or vetted.fleet._pauses or vetted.fleet._admitted))


async def test_being_vetted_again_is_no_load(vetted: Vetted) -> None:
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    vetted.fleet.eject("m", vetted.endpoint, "broken")
    await vetted.until_ready(vetted.endpoint)
    assert vetted.loads.taken("m") == []


async def test_what_is_seen_before_the_fleet_has_been_seen_whole_is_no_load(vetted: Vetted) -> None:
    vetted.believing.synced = False
    vetted.believing.claim()
    await vetted.until(lambda: vetted.fleet.view("m").desired == 1)
    vetted.believing.synced = True
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    assert vetted.loads.taken("m") == []


async def test_a_load_that_was_seen_from_its_begin_is_one(vetted: Vetted) -> None:
    vetted.believing.claim()
    await vetted.until(lambda: vetted.fleet.view("m").desired == 1)
    vetted.believing.claim(vetted.endpoint)
    await vetted.until_ready(vetted.endpoint)
    assert len(vetted.loads.taken("m")) == 1
