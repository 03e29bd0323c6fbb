"""API keys: who may do what, and a folder of them that changes under a running router."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from multimodel_api.errors import ApiError
from multimodel_api.keys import Action, KeyEntry, key_hash, new_key
from multimodel_api.manifest import Model
from multimodel_router.access import Access, Caller, KeyFolder, check, parse_entry, presented_key

ALICE, BOB = new_key(), new_key()
MATH = Model.model_validate({"name": "abacus", "alias": "math", "plain": {"modelId": "org/abacus"}})
WORDS = Model.model_validate({"name": "scribe", "plain": {"modelId": "org/scribe"}})


def entry(key: str, models: list[str], actions: list[str]) -> dict[str, Any]:
    return {"hash": key_hash(key), "models": models, "actions": actions}


KEYS = {
    "alice": KeyEntry.model_validate(entry(ALICE, ["*"], ["infer", "manage"])),
    "bob": KeyEntry.model_validate(entry(BOB, ["math"], ["infer"])),
}


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())]


@pytest.mark.parametrize("action", [None, *Action])
@pytest.mark.parametrize("model", [None, MATH, WORDS])
def test_without_keys_everybody_may_do_everything(action: Action | None, model: Model | None) -> None:
    access = Access.open()
    caller = access.caller([], action, model)
    assert caller == Caller("anonymous")
    assert access.may_see(caller, WORDS)


ALLOWED = [
    ("alice", Action.MANAGE, WORDS),
    ("alice", Action.INFER, None),
    ("bob", Action.INFER, MATH),
    ("bob", None, None),
    ("bob", None, MATH),
]


@pytest.mark.parametrize(("name", "action", "model"), ALLOWED)
def test_a_key_does_what_its_entry_says(name: str, action: Action | None, model: Model | None) -> None:
    key = {"alice": ALICE, "bob": BOB}[name]
    assert check(KEYS, bearer(key), action, model) == Caller(name)


FORBIDDEN = [
    (Action.MANAGE, MATH, "The API key 'bob' may not manage with the model 'math'."),
    (Action.MANAGE, None, "The API key 'bob' may not manage."),
    (Action.INFER, WORDS, "The API key 'bob' may not infer with the model 'org/scribe'."),
    (None, WORDS, "The API key 'bob' may not look at models with the model 'org/scribe'."),
]


@pytest.mark.parametrize(("action", "model", "words"), FORBIDDEN)
def test_what_an_entry_does_not_say_is_refused(action: Action | None, model: Model | None, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        check(KEYS, bearer(BOB), action, model)
    error = refused.value
    assert (error.status, error.detail.code) == (HTTPStatus.FORBIDDEN, "insufficient_permissions")
    assert error.detail.message.startswith(words)
    assert BOB not in error.detail.message


@pytest.mark.parametrize("headers", [[], bearer("sk-mm-wrong"), bearer(""), [(b"authorization", b"Basic YTpi")]])
def test_no_key_or_an_unknown_one_is_a_challenge(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ApiError) as refused:
        check(KEYS, headers, Action.INFER, MATH)
    error = refused.value
    assert (error.status, error.detail.code) == (HTTPStatus.UNAUTHORIZED, "invalid_api_key")
    assert error.headers == {"www-authenticate": "Bearer"}
    assert "sk-mm-wrong" not in error.detail.message


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"Authorization", b"bearer  k ")], b"k"),
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"x-api-key", b"other"), (b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"Basic YTpi"), (b"X-Api-Key", b"k")], b"k"),
        ([(b"authorization", b"k")], None),
        ([(b"authorization", b"Bearer \xff")], b"\xff"),
    ],
)
def test_where_a_key_may_stand(headers: list[tuple[bytes, bytes]], key: bytes | None) -> None:
    assert presented_key(headers) == key


def test_a_list_shows_the_models_of_a_key_alone() -> None:
    access = Access(KEYS)
    assert [access.may_see(Caller("bob"), model) for model in (MATH, WORDS)] == [True, False]
    assert not access.may_see(Caller("gone"), MATH)


BAD_ENTRIES = {
    "a name of a dot and more": ("a b", entry(ALICE, ["*"], ["infer"]), "name"),
    "the name of nobody": ("anonymous", entry(ALICE, ["*"], ["infer"]), "name"),
    "the key itself": ("x", {"hash": ALICE, "models": ["*"], "actions": ["infer"]}, "hash: "),
    "a key where a field should be": ("x", entry(ALICE, ["*"], ["infer"]) | {ALICE: 1}, "known are: hash, models"),
    "an unknown action": ("x", entry(ALICE, ["*"], ["reign"]), "actions.0: "),
    "no models": ("x", entry(ALICE, [], ["infer"]), "models: "),
    "no document": ("x", ALICE, "the document: "),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_a_bad_entry_is_named_and_never_repeated(case: str) -> None:
    name, document, words = BAD_ENTRIES[case]
    with pytest.raises(ValueError, match=words) as refused:
        parse_entry(name, json.dumps(document).encode())
    assert ALICE not in str(refused.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 60_000, b"2024-99-99", b"hash: 'open"])
def test_what_is_no_document_is_said_so(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"neither JSON nor YAML|the document: "):
        parse_entry("x", content)


def write(folder: Path, name: str, key: str, models: tuple[str, ...] = ("*",)) -> None:
    (folder / name).write_text(json.dumps(entry(key, list(models), ["infer"])))


def may(access: Access, key: str) -> bool:
    try:
        access.caller(bearer(key), Action.INFER, MATH)
    except ApiError:
        return False
    return True


async def eventually(what: str, look: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(10):
            while not look():  # noqa: ASYNC110  (what is waited for is in a folder)
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not within 10 s: {what}")


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[KeyFolder]:
    """A folder `keys` with Alice's key, and whoever follows it."""
    (tmp_path / "keys").mkdir()
    write(tmp_path / "keys", "alice", ALICE)
    access = KeyFolder(tmp_path / "keys", reload_seconds=0.01)
    running = asyncio.create_task(access.run())
    yield access
    assert not running.done()
    running.cancel()


async def test_keys_come_change_and_go_without_a_restart(folder: KeyFolder, tmp_path: Path) -> None:
    assert (may(folder, ALICE), may(folder, BOB)) == (True, False)
    write(tmp_path / "keys", "bob", BOB)
    await eventually("bob may call", lambda: may(folder, BOB))
    write(tmp_path / "keys", "bob", BOB, models=("org/scribe",))
    await eventually("bob may call another model alone", lambda: not may(folder, BOB))
    (tmp_path / "keys" / "alice").unlink()
    await eventually("alice may not", lambda: not may(folder, ALICE))


async def test_yaml_is_as_good_as_json(folder: KeyFolder, tmp_path: Path) -> None:
    (tmp_path / "keys" / "bob").write_text(f"hash: {key_hash(BOB)}\nmodels: ['*']\nactions: [infer]\n")
    await eventually("bob may call", lambda: may(folder, BOB))


async def test_broken_entries_leave_the_others_alone(
    folder: KeyFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    (keys / "broken").write_text(f"key: {BOB}")
    (keys / "huge").write_bytes(b"#" * 70_000)
    (keys / "gone").symlink_to("nowhere")
    os.mkfifo(keys / "pipe")
    (keys / ".hidden").write_text("no entry")
    write(keys, "bob", BOB)
    await eventually("bob may call", lambda: may(folder, BOB))
    assert may(folder, ALICE)
    await eventually("all are told", lambda: all(name in caplog.text for name in ("broken", "huge", "gone", "pipe")))
    assert ".hidden" not in caplog.text
    assert not any(key in caplog.text for key in (ALICE, BOB, key_hash(BOB)))


async def test_an_unreadable_folder_keeps_the_last_keys_and_says_so_once(
    folder: KeyFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys").rename(tmp_path / "away")
    await eventually("it is told", lambda: "cannot be read" in caplog.text)
    folder.reload()
    assert may(folder, ALICE)
    assert caplog.text.count("cannot be read") == 1
    (tmp_path / "away" / "alice").unlink()
    (tmp_path / "away").rename(tmp_path / "keys")
    await eventually("it is read again", lambda: not may(folder, ALICE))


def test_a_folder_that_is_not_there_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not may(KeyFolder(tmp_path / "none"), ALICE)
    assert "No such file" in caplog.text


def publish(mount: Path, version: str, entries: dict[str, str]) -> None:
    """Write a Secret's mount as the kubelet does: a new folder, `..data` swung to it, links for the entries."""
    (mount / version).mkdir(parents=True)
    for name, key in entries.items():
        write(mount / version, name, key)
    (mount / "..next").symlink_to(version)
    (mount / "..next").rename(mount / "..data")
    for name in entries:
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(f"..data/{name}")
    for link in mount.iterdir():
        if not link.name.startswith("..") and link.name not in entries:
            link.unlink()


async def test_a_mounted_secret_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mount = tmp_path / "mount"
    publish(mount, "..1", {"alice": ALICE})
    access = KeyFolder(mount, reload_seconds=0.01)
    running = asyncio.create_task(access.run())
    assert may(access, ALICE)
    publish(mount, "..2", {"alice": ALICE, "bob": BOB})
    await eventually("bob came", lambda: may(access, BOB) and may(access, ALICE))
    publish(mount, "..3", {"bob": BOB})
    await eventually("alice went", lambda: not may(access, ALICE) and may(access, BOB))
    publish(mount, "..4", {"bob": ALICE})
    await eventually("the key of an entry was replaced", lambda: may(access, ALICE) and not may(access, BOB))
    running.cancel()


async def test_an_unchanged_folder_is_not_parsed_again(folder: KeyFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = folder.keys
    folder.reload()
    assert folder.keys is before
    assert caplog.text == ""
