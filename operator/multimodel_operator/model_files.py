"""Asks the Hub how large a model is, without a token and without fetching any weights."""

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from multimodel_api.manifest import HubSource, Model
from multimodel_operator.fit import ModelFiles
from multimodel_operator.inquiries import Inquiries
from multimodel_operator.objects import Key

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
MAX_DOCUMENT_BYTES = 32 << 20
KEEP_SECONDS = 6 * 3600.0
RETRY_SECONDS = 600.0

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


class Repository(NamedTuple):
    """A repository of the Hub at a revision."""

    name: str
    revision: str


class _NotToldError(Exception):
    """The Hub does not tell; the message says why, for people."""


class HubFiles:
    """Which files models have on the Hub; `changed` is called with the MultiModel whose answer has come."""

    def __init__(self, endpoint: str, changed: Callable[[Key], None]) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._inquiries: Inquiries[Repository, ModelFiles] = Inquiries(
            self._ask, changed, lambda files: RETRY_SECONDS if files.problem else KEEP_SECONDS
        )

    def of(self, key: Key, model: Model) -> ModelFiles | None:
        """Return a model's files, None until the Hub has answered."""
        source = getattr(model, model.kind)
        if not isinstance(source, HubSource) or source.model_id.startswith(("/", ".", "~")):
            return ModelFiles({}, 0, problem="its files are where only its pods can see them")
        return self._inquiries.answer(Repository(source.model_id, source.revision or "main"), key)

    async def run(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS), trust_env=True
        ) as self._session:
            await self._inquiries.run()

    async def _ask(self, repository: Repository) -> ModelFiles:
        try:
            return await self._look(repository)
        except _NotToldError as error:
            return ModelFiles({}, 0, problem=str(error))
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.info("the size of %s is not known: %r", repository.name, error)
            return ModelFiles({}, 0, problem=f"{self._endpoint} cannot be reached from the operator")

    async def _look(self, repository: Repository) -> ModelFiles:
        config = await self._document(repository, CONFIG)
        if config is None:
            return ModelFiles({}, 0, problem=f"the Hub has no {CONFIG} of {repository.name}")
        return ModelFiles(config, await self._weight_bytes(repository))

    async def _weight_bytes(self, repository: Repository) -> int:
        """Return the bytes of all weights: as their index sums them up, else those of the only file."""
        index = await self._document(repository, INDEX)
        if index is not None:
            return int(index.get("metadata", {}).get("total_size", 0)) or self._no_weights(repository)
        async with self._opened().head(self._url(repository, WEIGHTS), allow_redirects=True) as response:
            if response.status != HTTPStatus.OK:
                return self._no_weights(repository)
            return response.content_length or self._no_weights(repository)

    async def _document(self, repository: Repository, file: str) -> dict[str, Any] | None:
        """Return a JSON file, None where there is none."""
        async with self._opened().get(self._url(repository, file)) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise _NotToldError(f"the Hub shows {repository.name} to nobody without a token; the operator has none")
            response.raise_for_status()
            text = await _text(response)
        try:
            document = json.loads(text)
        except ValueError as error:
            raise _NotToldError(f"{file} of {repository.name} is no JSON: {error}") from error
        if not isinstance(document, dict):
            raise _NotToldError(f"{file} of {repository.name} is no JSON object")
        return document

    def _no_weights(self, repository: Repository) -> int:
        raise _NotToldError(f"{repository.name} has no safetensors weights on the Hub whose size could be told")

    def _url(self, repository: Repository, file: str) -> str:
        return f"{self._endpoint}/{quote(repository.name)}/resolve/{quote(repository.revision, safe='')}/{file}"

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise _NotToldError("the Hub is not asked yet")
        return self._session


async def _text(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for chunk in response.content.iter_any():
        text += chunk
        if len(text) > MAX_DOCUMENT_BYTES:
            raise _NotToldError(f"{response.url} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(text)
