"""Asks routers how many requests each model has: they alone know, and they remember when the last one came.

So nothing has to be stored for models that fall idle, and an operator that has just begun knows as much as its
predecessor.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
PAGES_AT_ONCE = 32
MAX_PAGE_BYTES = 8 * 2**20

IN_FLIGHT = "multimodel_router_requests_in_flight"
LAST_REQUEST = "multimodel_router_last_request_timestamp_seconds"
_WANTED = (IN_FLIGHT, LAST_REQUEST)


@dataclass(frozen=True)
class RouterPod:
    """A router that may have requests; `must_answer` is whether what it has would be missed."""

    name: str
    url: str
    began: float
    """When its process began, in seconds since the epoch: it knows of no request before."""
    must_answer: bool


@dataclass(frozen=True)
class Counted:
    """What routers counted of one model."""

    in_flight: int = 0
    last_request: float = 0.0
    """When the last request came or ended, in seconds since the epoch."""


@dataclass(frozen=True)
class Sample:
    """What the routers of a MultiModel say, by model."""

    at: float
    models: Mapping[str, Counted]
    began: float
    """When the youngest router began; before that, there may have been requests that nobody remembers."""
    heard: int
    """How many routers answered."""
    silent: tuple[str, ...] = ()
    """The routers that should have answered, and did not."""

    @property
    def complete(self) -> bool:
        """Whether there is no other request."""
        return self.heard > 0 and not self.silent

    def of(self, model: str) -> Counted:
        """Return what is known of one model."""
        return self.models.get(model, Counted(last_request=self.began))


Page = Mapping[str, Counted]


def read_page(text: str) -> Page:
    """Return what one router's metrics say of each model; raises ValueError where they are none."""
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(wanted + "\n"):
        for sample in family.samples:
            found.setdefault(sample.labels.get("model", ""), {})[sample.name] = sample.value
    return {
        model: Counted(int(values.get(IN_FLIGHT, 0)), values.get(LAST_REQUEST, 0.0)) for model, values in found.items()
    }


def joined(at: float, routers: Sequence[RouterPod], pages: Sequence[Page | None]) -> Sample:
    """Return what all routers say together; a page of None is one that did not come."""
    asked = list(zip(routers, pages, strict=True))
    heard = [(router, page) for router, page in asked if page is not None]
    models = {model for _, page in heard for model in page}
    return Sample(
        at=at,
        models={model: _together(model, heard) for model in models},
        began=max((router.began for router, _ in heard), default=0.0),
        heard=len(heard),
        silent=tuple(router.name for router, page in asked if page is None and router.must_answer),
    )


def _together(model: str, heard: Iterable[tuple[RouterPod, Page]]) -> Counted:
    """Add up; a router that knows no request for a model may have lost its memory when it began."""
    in_flight, last_request = 0, 0.0
    for router, page in heard:
        counted = page.get(model, Counted())
        in_flight += counted.in_flight
        last_request = max(last_request, counted.last_request or router.began)
    return Counted(in_flight, last_request)


class Routers:
    """Where routers are asked."""

    def __init__(self, session: aiohttp.ClientSession, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._session = session
        self._patience = aiohttp.ClientTimeout(total=answer_seconds)
        self._places = asyncio.Semaphore(PAGES_AT_ONCE)

    async def sample(self, routers: Sequence[RouterPod], now: float) -> Sample:
        """Ask all of these routers at once."""
        return joined(now, routers, await asyncio.gather(*(self._page(router) for router in routers)))

    async def _page(self, router: RouterPod) -> Page | None:
        try:
            async with (
                self._places,
                self._session.get(router.url, ssl=False, timeout=self._patience, allow_redirects=False) as response,
            ):
                return read_page(await _text(response))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger.debug("router %s does not tell its load: %r", router.name, error)
            return None


async def _text(response: aiohttp.ClientResponse) -> str:
    """Return the text of a good answer; raises ValueError for any other."""
    if response.status != HTTPStatus.OK:
        raise ValueError(f"status {response.status}")
    text = bytearray()
    async for chunk in response.content.iter_any():
        text += chunk
        if len(text) > MAX_PAGE_BYTES:
            raise ValueError(f"more than {MAX_PAGE_BYTES} bytes")
    return text.decode()


@asynccontextmanager
async def asking(answer_seconds: float = ANSWER_SECONDS) -> AsyncIterator[Routers]:
    """Ask routers for the length of the block; their certificates are for other names than their addresses."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=PAGES_AT_ONCE, force_close=True), trust_env=False
    ) as session:
        yield Routers(session, answer_seconds)
