"""Who may call: API keys from a folder, such as a Secret's mount, read again whenever it changes."""

import asyncio
import hmac
import logging
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from multimodel_api import errors
from multimodel_api.keys import ANONYMOUS, KEY_NAME, MAX_KEY_NAME, Action, KeyEntry, key_digest
from multimodel_api.manifest import Model

__all__ = ["Access", "Action", "Caller", "KeyFolder"]

logger = logging.getLogger(__name__)

RELOAD_SECONDS = 2.0
MAX_ENTRY_BYTES = 64 * 1024

_BEARER = b"bearer "

Keys = Mapping[str, KeyEntry]
Headers = Iterable[tuple[bytes, bytes]]
EntryVersion = tuple[int, int, int] | None
"""What changes when an entry does: inode, time of change, size; None for one that is not there."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of the key, or `anonymous`."""

    name: str


_ANYBODY = Caller(ANONYMOUS)


@dataclass(frozen=True, slots=True)
class FolderContent:
    """What a folder held: its keys, and what is wrong with its other entries, by name."""

    version: Mapping[str, EntryVersion] = field(default_factory=dict)
    keys: Keys = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


class Access:
    """Decides who may do what; `keys` is None where everybody may do everything."""

    def __init__(self, keys: Keys | None) -> None:
        self.keys = keys

    @classmethod
    def open(cls) -> "Access":
        """Return the access that asks nobody for a key."""
        return cls(None)

    def caller(self, headers: Headers, action: Action | None, model: Model | None) -> Caller:
        """Return who calls; without an action any known key will do, without a model one for any model.

        Raises:
            ApiError: 401 without a known key, 403 where the key does not allow this.
        """
        return _ANYBODY if self.keys is None else check(self.keys, headers, action, model)

    def may_see(self, caller: Caller, model: Model) -> bool:
        """Say whether a list of models shows this one to the caller."""
        if self.keys is None:
            return True
        entry = self.keys.get(caller.name)
        return entry is not None and entry.covers(model.api_id)


def check(keys: Keys, headers: Headers, action: Action | None, model: Model | None) -> Caller:
    """Return who presents a key that allows `action` with `model`; pure.

    Raises:
        ApiError: 401 without a known key, 403 where the key does not allow this.
    """
    presented = presented_key(headers)
    if presented is None:
        raise errors.invalid_api_key("No API key was given; send one as 'Authorization: Bearer KEY'.")
    name = _name_of(keys, key_digest(presented))
    if name is None:
        raise errors.invalid_api_key("The API key is not known here.")
    entry = keys[name]
    if (action and action not in entry.actions) or (model and not entry.covers(model.api_id)):
        raise errors.insufficient_permissions(name, action or "look at models", model.api_id if model else None)
    return Caller(name)


def presented_key(headers: Headers) -> bytes | None:
    """Return the key that a request carries: OpenAI's bearer token or, without one, Anthropic's `x-api-key`."""
    other = None
    for name, value in headers:
        match name.lower():
            case b"authorization" if value[: len(_BEARER)].lower() == _BEARER:
                return value[len(_BEARER) :].strip()
            case b"x-api-key":
                other = value.strip()
    return other


def _name_of(keys: Keys, digest: bytes) -> str | None:
    """Compare with every key, in a time that does not tell which one it is or how much of it is right."""
    found = None
    for name, entry in keys.items():
        if hmac.compare_digest(entry.digest, digest):
            found = name
    return found


class KeyFolder(Access):
    """The keys of a folder, one entry a file; `run` follows its changes.

    An entry that cannot be understood is logged by its name and counts for nothing. While the folder cannot be read,
    the keys read last stay. Without any key, nobody may call.
    """

    def __init__(self, path: Path, *, reload_seconds: float = RELOAD_SECONDS) -> None:
        super().__init__({})
        self._path = path
        self._reload_seconds = reload_seconds
        self._content = FolderContent()
        self._readable = True
        self.reload()

    async def run(self) -> None:
        """Read the folder again whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(self._reload_seconds)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Read the folder again if it has changed."""
        try:
            seen = read_folder(self._path, self._content)
        except OSError as error:
            if self._readable:
                logger.error("API keys: %s cannot be read, the last keys stay: %s", self._path, error.strerror)  # noqa: TRY400
            self._readable = False
            return
        self._readable = True
        if seen is not self._content:
            self._content, self.keys = seen, seen.keys
            logger.info("API keys: %d in %s", len(seen.keys), self._path)
            for name, problem in seen.problems.items():
                logger.error("API keys: the entry %s in %s counts for nothing: %s", name, self._path, problem)


def read_folder(path: Path, known: FolderContent) -> FolderContent:
    """Return what a folder holds, or `known` itself where it still is that; raises OSError."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    version = {entry.name: _version(entry) for entry in entries}
    if version == known.version:
        return known
    keys: dict[str, KeyEntry] = {}
    problems: dict[str, str] = {}
    for entry in entries:
        try:
            keys[entry.name] = parse_entry(entry.name, _content_of(entry))
        except OSError as error:
            problems[entry.name] = f"it cannot be read: {error.strerror}"
        except ValueError as error:
            problems[entry.name] = str(error)
    return FolderContent(version, keys, problems)


def _version(entry: Path) -> EntryVersion:
    try:
        found = entry.stat()
    except OSError:  # reading it says why
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size


def _content_of(entry: Path) -> bytes:
    found = entry.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_ENTRY_BYTES:
        raise ValueError(f"it is no file of at most {MAX_ENTRY_BYTES} bytes")
    return entry.read_bytes()


def parse_entry(name: str, content: bytes) -> KeyEntry:
    """Return the entry that a JSON or YAML document describes; pure.

    Raises:
        ValueError: it does not; the message repeats nothing of the document, which may hold a key by mistake.
    """
    if name == ANONYMOUS or len(name) > MAX_KEY_NAME or not re.fullmatch(KEY_NAME, name):
        raise ValueError("no key may have this name")
    try:
        return KeyEntry.model_validate(yaml.safe_load(content))
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError("it is neither JSON nor YAML") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        return f"it has a field that is not known; known are: {', '.join(KeyEntry.model_fields)}"
    return f"{'.'.join(str(part) for part in first['loc']) or 'the document'}: {first['msg']}"
