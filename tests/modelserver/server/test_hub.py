"""Models by folder and from a stand-in for the Hub on loopback, through the Hub's own client library."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from multimodel_api.failures import FailureReason
from multimodel_server import hub
from multimodel_server.errors import LoadError

COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
TOKEN = "hf_secretsecretsecret"


@dataclass
class HubStandIn:
    """Serves repositories with the routes and headers that the Hub's library uses."""

    repositories: dict[str, dict[str, dict[str, bytes]]]
    sizes: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.asked.append(f"{handler.command} {path}")
        if self.status is not None:
            return self.send(handler, self.status, b"", {})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repository, kind, revision = match.groups()
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path):
            repository, kind, revision = match.groups()[:3]
        else:
            return self.send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        if repository not in self.repositories:
            return self.send(handler, 404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        if repository.startswith("gated/") and handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(handler, 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        commit = {"main": COMMIT, "v1": OLD_COMMIT}.get(revision or "main", revision or "")
        files = self.repositories[repository].get(commit)
        if files is None:
            return self.send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if kind == "resolve":
            return self.send_file(handler, files[match.group(4)], commit)
        document = self.tree(files) if kind == "tree" else self.info(repository, commit, files)
        return self.send(handler, 200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def info(self, repository: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": self.size(name, data)} for name, data in files.items()]
        return {"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings}

    def tree(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": self.size(name, data)}
            for name, data in files.items()
        ]

    def size(self, name: str, data: bytes) -> int:
        return self.sizes.get(name, len(data))

    def send_file(self, handler: BaseHTTPRequestHandler, data: bytes, commit: str) -> None:
        self.send(handler, 200, data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)


@pytest.fixture
def stand_in(tiny_model: Path) -> Iterator[HubStandIn]:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    extra = {
        "pytorch_model.bin": b"pickle",
        "README.md": b"# words",
        "original/params.json": b"{}",
        "consolidated.safetensors": b"twice",
    }
    repositories = {"org/tiny": {COMMIT: files | extra, OLD_COMMIT: {"config.json": b'{"old": 1}'}}}
    hub_stand_in = HubStandIn({**repositories, "gated/tiny": {COMMIT: files}, "org/empty": {COMMIT: {"a.json": b"{}"}}})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub_stand_in.answer(self)

        def do_HEAD(self) -> None:
            hub_stand_in.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub_stand_in.url = f"http://127.0.0.1:{server.server_port}"
    yield hub_stand_in
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def endpoint(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """The stand-in as this process's Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return stand_in


def fetch(cache: Path, model: str = "org/tiny", **options: Any) -> Path:
    given: dict[str, Any] = {"revision": None, "offline": False, "report": lambda *_: None, **options}
    return hub.download(model, cache_dir=cache, **given)


def failure(cache: Path, model: str = "org/tiny", **options: Any) -> tuple[FailureReason, str]:
    with pytest.raises(LoadError) as caught:
        fetch(cache, model, **options)
    return caught.value.failure.reason, caught.value.failure.message


def test_a_repository_is_downloaded_once_and_only_what_is_harmless(endpoint: HubStandIn, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    folder = fetch(tmp_path, report=lambda done, total: reports.append((done, total)))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "README.md", "params.json", "consolidated.safetensors"}
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert reports[-1] == (size, size)
    endpoint.asked.clear()
    assert fetch(tmp_path) == folder
    assert not [line for line in endpoint.asked if "/resolve/" in line]


def test_a_revision_is_pinned(endpoint: HubStandIn, tmp_path: Path) -> None:
    for revision in ("v1", OLD_COMMIT):
        folder = fetch(tmp_path, revision=revision)
        assert (folder.name, (folder / "config.json").read_text()) == (OLD_COMMIT, '{"old": 1}')


def test_offline_mode_uses_the_cache_and_asks_nobody(endpoint: HubStandIn, tmp_path: Path) -> None:
    folder = fetch(tmp_path)
    endpoint.asked.clear()
    assert fetch(tmp_path, offline=True) == folder
    assert endpoint.asked == []
    reason, message = failure(tmp_path / "other", offline=True)
    assert reason is FailureReason.HUB_UNREACHABLE
    assert "offline mode is on" in message


@pytest.mark.parametrize("status", [500, 429])
def test_a_hub_in_trouble_is_bridged_by_the_cache(endpoint: HubStandIn, tmp_path: Path, status: int) -> None:
    folder = fetch(tmp_path / "full")
    endpoint.status = status
    assert fetch(tmp_path / "full") == folder
    reason, message = failure(tmp_path / "empty")
    assert (reason, str(status) in message) == (FailureReason.HUB_UNREACHABLE, True)


def test_a_hub_that_cannot_be_reached(endpoint: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    reason, message = failure(tmp_path)
    assert reason is FailureReason.HUB_UNREACHABLE
    assert "http://127.0.0.1:9" in message


def test_what_the_hub_does_not_have(endpoint: HubStandIn, tmp_path: Path) -> None:
    reason, message = failure(tmp_path, "org/nothing")
    assert reason is FailureReason.HUB_NOT_FOUND
    assert "org/nothing" in message
    assert str(Path("org/nothing").absolute()) in message
    reason, message = failure(tmp_path, revision="v9")
    assert (reason, "revision 'v9'" in message) == (FailureReason.HUB_NOT_FOUND, True)
    reason, message = failure(tmp_path, "org/empty")
    assert (reason, "no config.json" in message) == (FailureReason.HUB_NOT_FOUND, True)


def test_a_gated_repository_needs_a_token(
    endpoint: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    reason, message = failure(tmp_path, "gated/tiny")
    assert (reason, "HF_TOKEN is set" in message) == (FailureReason.HUB_UNAUTHORIZED, True)
    assert "hf_wrong" not in message + caplog.text
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch(tmp_path, "gated/tiny") / "config.json").is_file()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_unauthorised(endpoint: HubStandIn, tmp_path: Path, status: int) -> None:
    endpoint.status = status
    assert failure(tmp_path)[0] is FailureReason.HUB_UNAUTHORIZED


def test_a_model_larger_than_the_disk_is_not_begun(endpoint: HubStandIn, tmp_path: Path) -> None:
    endpoint.sizes["model.safetensors"] = 10**16
    reason, message = failure(tmp_path)
    assert reason is FailureReason.DISK_FULL
    assert "10,000,000.0 GB" in message
    assert not [line for line in endpoint.asked if "/resolve/" in line]


def test_a_folder_wins_over_the_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("org/tiny")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").symlink_to(tiny_model)
    assert not hub.is_hub_id("org/tiny")
    assert hub.local_folder("org/tiny") == tmp_path / "org" / "tiny"


@pytest.mark.parametrize("model", ["tiny", "a/b/c", "/nowhere/model", "./org/tiny", "../x", "org/ti ny", "org/"])
def test_what_is_neither_folder_nor_hub_id(model: str) -> None:
    assert not hub.is_hub_id(model)
    with pytest.raises(LoadError) as caught:
        hub.local_folder(model)
    assert caught.value.failure.reason is FailureReason.MODEL_NOT_FOUND
    assert repr(model) in caught.value.failure.message
    assert str(Path.cwd()) in caught.value.failure.message


def test_a_file_or_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"holds no config\.json"):
        hub.local_folder(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match="is a file"):
        hub.local_folder(str(tmp_path / "file"))


def test_a_server_downloads_and_serves(stand_in: HubStandIn, start_server: Any, tmp_path: Path) -> None:
    server = start_server(
        "--model=org/tiny", f"--cache-dir={tmp_path}", env={"HF_ENDPOINT": stand_in.url, "HF_TOKEN": TOKEN}
    )
    server.wait_until_ready()
    with server.http() as client:
        progress = client.get("/health/progress").json()
        answer = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 2}).json()
    assert progress["seconds"]["downloading"] > 0
    assert answer["model"] == "org/tiny"
    assert TOKEN not in server.log
