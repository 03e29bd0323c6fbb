"""Whether a model fits its device, from its config and the sizes of its files; the Hub is a stand-in."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from multimodel_api.manifest import EngineSettings, Model, MultiModelSpec
from multimodel_operator.errors import RefusedError
from multimodel_operator.fit import LOOKING, Fit, ModelFiles, fit, memory_of
from multimodel_operator.fit_check import FitCheck
from multimodel_operator.objects import Key

MIB = 1 << 20
# The shape of Llama-3.1-8B: 8.03 G parameters, 128 KiB of keys and values for each token in bf16.
LLAMA = {
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}
LLAMA_BYTES = 16_060_522_496
FILES = ModelFiles(LLAMA, LLAMA_BYTES)
KEY = Key("team", "mm")


def model(**fields: Any) -> Model:
    return Model.model_validate({"name": "a", "plain": {"modelId": "org/a"}, **fields})


def engine(**fields: Any) -> EngineSettings:
    return EngineSettings.model_validate(fields)


def node(mib: int | None, **labels: str) -> dict[str, Any]:
    return {"metadata": {"labels": labels | ({"nvidia.com/gpu.memory": str(mib)} if mib else {})}}


GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def figures(files: ModelFiles = FILES, settings: EngineSettings | None = None, **fields: Any) -> tuple[int, int, int]:
    memory = memory_of(model(**fields), settings or engine(), files)
    return memory.weights_mib, memory.kv_cache_mib, memory.tokens


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (15317, 512, 4096)),
        ({"dtype": "f32"}, (30633, 1024, 4096)),
        ({"pagedAttention": {"contextLen": 131072}}, (15317, 16384, 131072)),
        ({"pagedAttention": {"memoryMb": 1024}}, (15317, 1024, 8192)),
        ({"pagedAttention": {"cacheType": "f8e4m3"}}, (15317, 256, 4096)),
        ({"maxSeqLen": 8192, "maxBatchSize": 2}, (15317, 2048, 16384)),
    ],
)
def test_weights_and_cache_are_counted(settings: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert figures(settings=engine(**settings)) == expected


def test_quantising_leaves_the_embedding_as_it_is() -> None:
    weights, _, _ = figures(inSituQuant="Q4K")
    embedding = 128256 * 4096 * 2
    assert weights == round((embedding + (LLAMA_BYTES - embedding) * 4.5 / 16) / MIB)
    already = ModelFiles(LLAMA | {"quantization_config": {"quant_method": "fp8"}}, LLAMA_BYTES)
    assert figures(already, inSituQuant="Q4K")[0] == 15317


def test_the_text_part_of_a_vision_model_has_the_cache() -> None:
    nested = ModelFiles({"text_config": LLAMA | {"head_dim": 64}}, LLAMA_BYTES)
    assert figures(nested)[1] == 256


NEEDED = "a replica needs about 16853 MiB (15317 for weights, 512 for the KV cache of 4096 tokens, 1024 for the server)"
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], bool | None, str]] = {
    "a large GPU": (GPU, [node(24576), node(16384)], True, f"{NEEDED}; the largest GPU has 24576 MiB"),
    "a small GPU": (GPU, [node(16384)], False, f"{NEEDED}, but the largest GPU has 16384 MiB"),
    "another node": (
        GPU | {"nodeSelector": {"kind": "small"}},
        [node(24576, kind="large"), node(16384, kind="small")],
        False,
        f"{NEEDED}, but the largest GPU has 16384 MiB",
    ),
    "unlabelled nodes": (GPU, [node(None)], None, f"{NEEDED}; no node tells its nvidia.com/gpu.memory"),
    "enough memory": (
        {"resources": {"limits": {"memory": "20Gi"}}},
        [],
        True,
        f"{NEEDED}; its memory limit has 20480 MiB",
    ),
    "too little memory": (
        {"resources": {"limits": {"memory": "16Gi"}}},
        [],
        False,
        f"{NEEDED}, but its memory limit has 16384 MiB",
    ),
    "no limit": ({}, [], None, f"{NEEDED}; it has no memory limit"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_needed_is_compared_with_what_there_is(case: str) -> None:
    fields, nodes, holds, message = CASES[case]
    found = fit(model(**fields), engine(), FILES, nodes)
    assert (found.holds, found.message) == (holds, message)
    assert found.memory is not None


def test_what_is_not_known_is_said() -> None:
    assert fit(model(), engine(), None, []) is LOOKING
    assert fit(model(**GPU), engine(), FILES, None) is LOOKING
    assert fit(model(), engine(), FILES, None) is not LOOKING, "it needs no node's word"
    assert fit(model(), engine(), ModelFiles({}, 0, problem="no"), []) == Fit(None, "no")
    told = fit(model(), engine(), ModelFiles({"num_attention_heads": 1, "hidden_size": 1}, 1), [])
    assert told.message.startswith("config.json has no num_hidden_layers")


class Hub:
    """A stand-in for the Hub: what it has, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 200

    def put(self, path: str, document: Any) -> None:
        self.files[path] = document if isinstance(document, bytes) else json.dumps(document).encode()


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    """The stand-in and its address."""
    contents = Hub()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            contents.asked.append(f"{self.command} {self.path}")
            body = contents.files.get(self.path)
            self.send_response(contents.status if body is not None else 404)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET  # noqa: N815  (the name that http.server looks for)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield contents, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Nodes:
    """A cluster's nodes, or the refusal to list them."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self._nodes = nodes

    async def list(self, *_: Any) -> tuple[Any, str]:
        if not self._nodes:
            raise RefusedError("nodes is forbidden")
        return self._nodes, "1"


def is_looked_up(found: Fit) -> bool:
    return found.message != LOOKING.message


async def looked_up(endpoint: str, nodes: Nodes, done: Callable[[Fit], bool] = is_looked_up, **fields: Any) -> Fit:
    """Return what the check says in the end, having asked as a reconciliation does: again at each change."""
    changed = asyncio.Event()
    check = FitCheck(endpoint, nodes, lambda _: changed.set())
    spec = MultiModelSpec.model_validate({"models": [{"name": "a", "plain": {"modelId": "org/a"}, **fields}]})
    running = asyncio.create_task(check.run())
    async with asyncio.timeout(30):
        while not done(found := check.of(KEY, spec)["a"]):
            await changed.wait()
            changed.clear()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return found


async def test_the_index_tells_the_size_of_all_weights(hub: tuple[Hub, str]) -> None:
    contents, url = hub
    contents.put("/org/a/resolve/main/config.json", LLAMA)
    contents.put("/org/a/resolve/main/model.safetensors.index.json", {"metadata": {"total_size": LLAMA_BYTES}})
    found = await looked_up(url, Nodes(), resources={"limits": {"memory": "20Gi"}})
    assert (found.holds, found.message) == (True, f"{NEEDED}; its memory limit has 20480 MiB")
    assert not any("HEAD" in path or path.endswith(".safetensors") for path in contents.asked)


async def test_the_nodes_tell_the_memory_of_their_gpus(hub: tuple[Hub, str]) -> None:
    contents, url = hub
    contents.put("/org/a/resolve/main/config.json", LLAMA)
    contents.put("/org/a/resolve/main/model.safetensors.index.json", {"metadata": {"total_size": LLAMA_BYTES}})
    found = await looked_up(url, Nodes(node(16384)), lambda found: found.holds is not None, **GPU)
    assert (found.holds, found.message) == (False, f"{NEEDED}, but the largest GPU has 16384 MiB")
    unlisted = await looked_up(url, Nodes(), **GPU)
    assert (unlisted.holds, unlisted.message) == (None, f"{NEEDED}; no node tells its nvidia.com/gpu.memory")


async def test_a_single_file_is_only_measured(hub: tuple[Hub, str]) -> None:
    contents, url = hub
    contents.put("/org/a/resolve/v1%2Fx/config.json", LLAMA)
    contents.put("/org/a/resolve/v1%2Fx/model.safetensors", bytes(3 * MIB))
    found = await looked_up(url, Nodes(), plain={"modelId": "org/a", "revision": "v1/x"})
    assert found.memory is not None
    assert found.memory.weights_mib == 3
    assert contents.asked[-1] == "HEAD /org/a/resolve/v1%2Fx/model.safetensors"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _: None, "the Hub has no config.json of org/a"),
        (lambda hub: hub.put("/org/a/resolve/main/config.json", b"<html>"), "is no JSON"),
        (lambda hub: hub.put("/org/a/resolve/main/config.json", [1]), "is no JSON object"),
        (lambda hub: hub.put("/org/a/resolve/main/config.json", LLAMA), "no safetensors weights"),
    ],
    ids=["unknown", "a web page", "a list", "no weights"],
)
async def test_what_the_hub_lacks_is_said(hub: tuple[Hub, str], prepare: Callable[[Hub], None], words: str) -> None:
    contents, url = hub
    prepare(contents)
    found = await looked_up(url, Nodes())
    assert found.holds is None
    assert words in found.message


async def test_a_model_that_needs_a_token_cannot_be_looked_at(hub: tuple[Hub, str]) -> None:
    contents, url = hub
    contents.put("/org/a/resolve/main/config.json", LLAMA)
    contents.status = 401
    assert "without a token" in (await looked_up(url, Nodes())).message


async def test_a_hub_that_is_away_is_no_trouble() -> None:
    found = await looked_up("http://127.0.0.1:9", Nodes())
    assert (found.holds, found.message) == (None, "http://127.0.0.1:9 cannot be reached from the operator")


async def test_a_folder_of_the_pod_is_not_looked_at() -> None:
    found = await looked_up("http://127.0.0.1:9", Nodes(), plain={"modelId": "/models/a"})
    assert found.message == "its files are where only its pods can see them"


async def test_without_a_hub_nothing_is_looked_at() -> None:
    check = FitCheck("", Nodes(), lambda _: None)
    await check.run()
    assert check.of(KEY, MultiModelSpec.model_validate({"models": [{"name": "a", "plain": {"modelId": "o/a"}}]})) == {}
