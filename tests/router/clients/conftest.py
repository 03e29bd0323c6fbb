"""The router as a person starts it, with the example models, for all official clients; and Node's, installed once."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from multimodel_testbed import folders

ROOT = Path(__file__).parents[3]
LOAD_SECONDS = 150.0
NPM_SECONDS = 150
NODE_OPENAI = "7.57.0"
NODE_SCRIPT = Path(__file__).with_name("openai_client.cjs")


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the quickstart's models and wait until all are loaded."""
    log = tmp_path_factory.mktemp("router") / "router.log"
    options = ["--fleet=processes", "--manifest=examples/quickstart.yaml", "--port=0"]
    command = [sys.executable, "-m", "multimodel_router", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
    try:
        yield _until_loaded(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _until_loaded(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
        _, found, rest = log.read_text().partition("answers on ")
        if found and "/v1 " in rest:
            address = rest.partition("/v1 ")[0]
            cards = httpx.get(f"{address}/v1/models", trust_env=False).json()["data"][1:]
            if all(card["status"] == "loaded" for card in cards):
                return address
    pytest.fail(log.read_text())


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return a folder with OpenAI's client for Node; skip without Node, or where it cannot be fetched."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed: OpenAI's client for Node cannot be tried")
    folder = folders.cache_root() / "node" / f"openai-{NODE_OPENAI}"
    if not folder.exists():
        _install(folder)
    return folder


def _install(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        command = ["npm", "install", "--prefix", made, *options, f"openai@{NODE_OPENAI}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"OpenAI's client for Node could not be fetched within {NPM_SECONDS} s")
        if done.returncode != 0:
            pytest.skip(f"OpenAI's client for Node could not be fetched: {done.stderr[-500:]}")
        Path(made).rename(folder)
        Path(made).mkdir()


@pytest.fixture
def node(node_modules: Path) -> Callable[[str, str], Any]:
    """Run one scenario of the script and return what it printed."""

    def run(scenario: str, address: str) -> Any:
        environment = {"PATH": os.environ["PATH"], "NODE_PATH": str(node_modules / "node_modules")}
        command = ["node", str(NODE_SCRIPT), scenario, f"{address}/v1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
