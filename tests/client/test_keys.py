"""API keys: made by `multimodel keys new`, kept as digests, and shown by every command that talks to an endpoint."""

import base64
import hashlib
import json
import stat
import uuid
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from multimodel import AsyncClient, Client
from multimodel.cli import up
from multimodel.cli.application import app
from multimodel.local_router import Address, ApiKeys, router_command
from multimodel_api import errors
from multimodel_api.keys import KeyEntry
from multimodel_api.router_spec import RouterSpec


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MULTIMODEL_API_KEY", raising=False)
    return lambda *arguments, **options: CliRunner().invoke(app, arguments, **options)


def digest_of(key):
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_a_new_key_and_its_entry_are_printed(run):
    result = run("keys", "new", "alice")
    key, entry = result.stdout.splitlines()
    assert len(base64.urlsafe_b64decode(key.removeprefix("sk-mm-") + "=")) == 32
    assert json.loads(entry) == {"hash": digest_of(key), "models": ["*"], "actions": ["infer"]}
    assert "alice" in result.stderr
    assert key not in result.stderr
    assert run("keys", "new", "alice").stdout.splitlines()[0] != key


def test_a_secret_holds_the_entry_and_the_terminal_the_key(run):
    result = run(
        "keys", "new", "ops", "--secret", "chat-keys", "--actions", "infer,manage", "--models", "math, org/words"
    )
    secret = yaml.safe_load(result.stdout)
    assert (secret["kind"], secret["metadata"], list(secret["data"])) == ("Secret", {"name": "chat-keys"}, ["ops"])
    entry = KeyEntry.model_validate_json(base64.b64decode(secret["data"]["ops"]))
    key = result.stderr.splitlines()[-1]
    assert entry.hash == digest_of(key)
    assert (entry.models, entry.actions) == (["math", "org/words"], ["infer", "manage"])
    assert key not in result.stdout


def test_a_folder_gets_a_file_that_only_its_owner_reads(run, tmp_path):
    folder = tmp_path / "some" / "keys"
    result = run("keys", "new", "alice", "--folder", str(folder))
    entry = KeyEntry.model_validate_json((folder / "alice").read_text())
    assert entry.hash == digest_of(result.stdout.strip())
    assert stat.S_IMODE((folder / "alice").stat().st_mode) == 0o600
    assert str(folder / "alice") in result.stderr

    again = run("keys", "new", "alice", "--folder", str(folder))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists; delete it" in again.stderr
    assert KeyEntry.model_validate_json((folder / "alice").read_text()) == entry


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a b"], "'a b' cannot name a key"),
        (["..data"], "'..data' cannot name a key"),
        (["anonymous"], "'anonymous' cannot name a key"),
        (["a" * 254], "cannot name a key"),
        (["a", "--actions=reign"], "--actions: Input should be 'infer' or 'manage' (found 'reign')"),
        (["a", "--models=,"], "--models"),
        (["a", "--secret=s", "--folder=keys"], "choose one of --secret and --folder"),
        (["a", "--folder=/proc/nowhere"], "--folder: /proc/nowhere/a cannot be written"),
    ],
)
def test_wrong_words_are_refused_by_name(run, arguments, words):
    result = run("keys", "new", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.control_plane
def test_keys_join_in_a_secret_and_leave_it_one_by_one(run, api_server):
    secret = f"keys-{uuid.uuid4().hex[:8]}"

    def add(name):
        printed = run("keys", "new", name, "--secret", secret).stdout
        api_server.kubectl("apply", "--server-side", f"--field-manager={name}", "--filename=-", stdin=printed)

    def entries():
        return json.loads(api_server.kubectl("get", "secret", secret, "--output=json"))["data"]

    add("alice")
    add("bob")
    before = entries()
    assert set(before) == {"alice", "bob"}
    add("bob")
    assert entries()["bob"] != before["bob"]
    removal = '[{"op": "remove", "path": "/data/alice"}]'
    api_server.kubectl("patch", "secret", secret, "--type=json", f"--patch={removal}")
    assert set(entries()) == {"bob"}
    api_server.kubectl("delete", "secret", secret)


COMMANDS = [("status",), ("unload", "math"), ("reload", "math"), ("chat", "hi")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_key(run, endpoint, command):
    assert run(*command, "--url", endpoint.url, "--api-key", "sk-mm-a").exit_code == 0
    assert set(endpoint.keys_shown) == {"Bearer sk-mm-a"}
    assert run(*command, "--url", endpoint.url, env={"MULTIMODEL_API_KEY": "sk-mm-b"}).exit_code == 0
    assert endpoint.keys_shown[-1] == "Bearer sk-mm-b"
    assert run(*command, "--url", endpoint.url, env={"MULTIMODEL_API_KEY": ""}).exit_code == 0
    assert endpoint.keys_shown[-1] is None


async def test_both_clients_take_a_key(endpoint):
    with Client(endpoint.url, "sk-mm-a") as client:
        client.list_models()
    async with AsyncClient(endpoint.url, api_key="sk-mm-b") as client:
        await client.list_models()
    assert endpoint.keys_shown == ["Bearer sk-mm-a", "Bearer sk-mm-b"]


def test_a_missing_key_is_answered_with_what_to_type(run, endpoint):
    endpoint.chat_error = errors.invalid_api_key("No API key was given.")
    result = run("chat", "hi", "--url", endpoint.url)
    words = "error: No API key was given. Pass it with --api-key, or set MULTIMODEL_API_KEY.\n"
    assert (result.exit_code, result.stderr) == (1, words)


def test_a_key_that_is_none_is_refused_and_no_help_shows_the_key(run):
    refused = run("status", "--api-key", "sk-mm-a\nx-evil: 1")
    assert refused.exit_code == 2
    assert "sk-mm-a" not in refused.stderr
    assert "sk-mm-secret" not in run("status", "--help", env={"MULTIMODEL_API_KEY": "sk-mm-secret"}).stdout


def test_an_unload_says_how_long_and_why(run, endpoint):
    why = ("--reason", "room for others")
    assert run("unload", "math", "--url", endpoint.url, "--drain-seconds", "1.5", *why).exit_code == 0
    assert run("reload", "math", "--url", endpoint.url, *why).exit_code == 0
    assert endpoint.bodies == [
        {"model_id": "math", "drain_seconds": 1.5, "reason": "room for others"},
        {"model_id": "math", "reason": "room for others"},
    ]
    assert run("unload", "math", "--url", endpoint.url, "--reason", "x" * 257).exit_code == 2
    assert run("unload", "math", "--url", endpoint.url, "--drain-seconds", "-1").exit_code == 2


def test_the_routers_command_says_what_the_manifest_says():
    router = RouterSpec.model_validate(
        {"balance": "prefixHash", "replicas": 3, "workers": 4, "tls": {"secretName": "t"}}
    )
    command = router_command(Path("m.yaml"), router, Address("127.0.0.1", 1), ApiKeys(Path("keys"), "sk-mm-secret"))
    head = ["-m", "multimodel_router", "--fleet=processes", "--manifest=m.yaml", "--host=127.0.0.1", "--port=1"]
    assert command[1:] == [*head, "--balance=prefix-hash", "--api-keys=keys"]
    assert router_command(Path("m.yaml"), RouterSpec(), Address("127.0.0.1", 1), None)[1:] == head


@pytest.fixture
def served(monkeypatch):
    """What the commands would serve with."""
    seen = []
    monkeypatch.setattr(up, "serve_manifest", lambda *given: seen.append(given[-1]) or 0)
    return seen


def manifest(tmp_path, router):
    file = tmp_path / "models.yaml"
    head = {"apiVersion": "multimodel.dev/v1alpha1", "kind": "MultiModel", "metadata": {"name": "a"}}
    models = [{"name": "a", "plain": {"modelId": "org/a"}}]
    file.write_text(yaml.safe_dump({**head, "spec": {"models": models, "router": router}}))
    return str(file)


def test_up_with_keys_needs_one_itself(run, tmp_path, served):
    file = manifest(tmp_path, {})
    refused = run("up", file, "--api-keys", str(tmp_path))
    assert refused.exit_code == 2
    assert f"multimodel keys new me --folder {tmp_path}" in " ".join(refused.stderr.replace("│", " ").split())
    assert run("up", file, "--api-keys", str(tmp_path / "none"), "--api-key", "k").exit_code == 2
    assert run("up", file, "--api-keys", str(tmp_path), env={"MULTIMODEL_API_KEY": "k"}).exit_code == 0
    assert run("up", file, "--api-key", "k").exit_code == 0
    assert served == [ApiKeys(tmp_path, "k"), None]


def test_up_says_what_it_cannot_do_with_secrets_of_a_cluster(run, tmp_path, served):
    file = manifest(tmp_path, {"apiKeys": {"secretName": "k"}, "tls": {"secretName": "t"}})
    warnings = run("up", file).stderr
    assert [field in warnings for field in ("spec.router.apiKeys", "spec.router.tls")] == [True, True]
    warnings = run("up", file, "--api-keys", str(tmp_path), "--api-key", "k").stderr
    assert [field in warnings for field in ("spec.router.apiKeys", "spec.router.tls")] == [False, True]
