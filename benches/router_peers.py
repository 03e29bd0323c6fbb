"""The ways on which the router benchmark sends its streams: direct, through our router, and through its peers.

Every peer is had in a fixed version and kept apart from the project in `~/.cache/multimodel/peers`. A way that cannot
be had or started raises UnavailableError with the reason.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil
import router_load as load

CORE = 0
PEERS = load.CACHE / "peers"
STANDIN = Path(__file__).parent / "standin"
RELAY = Path(__file__).with_name("bare_relay.py")
START_SECONDS = 60.0
STOP_SECONDS = 10.0

SGLANG = "sglang-router==0.3.2"
VLLM = "vllm-router==0.1.17"
LITELLM = "litellm[proxy]==1.100.0"

NGINX_SETTINGS = """
daemon off; worker_processes 1; worker_rlimit_nofile 40000; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000; keepalive_timeout 300s;
  upstream servers {{ server 127.0.0.1:{upstream}; keepalive 8192; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
LITELLM_SETTINGS = """
model_list:
- model_name: {model}
  litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
"""
MANIFEST = """
metadata: {{name: {model}}}
spec:
  models:
  - {{name: {model}, alias: {model}, plain: {{modelId: {model}}}, scaling: {{minReplicas: 1}}}}
"""


class UnavailableError(Exception):
    """A way cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A way that answers: where the clients go, and the router's process (None: no router in between)."""

    target: str
    control_port: int
    router: psutil.Process | None

    def processes(self) -> list[psutil.Process]:
        """Return the router's processes, without the upstream that it may have started."""
        if self.router is None:
            return []
        family = [self.router, *self.router.children(recursive=True)]
        return [process for process in family if process.exe() != str(load.BINARY)]


Way = Callable[[], AbstractContextManager[Running]]


@contextmanager
def direct() -> Iterator[Running]:
    """No router: what upstream and clients themselves take."""
    with _upstream() as (port, control):
        yield _answering(Running(f"127.0.0.1:{port}", control, None))


@contextmanager
def ours() -> Iterator[Running]:
    """Our router over its fleet of processes, which starts the upstream as it starts a model server."""
    port, control = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.yaml"
        manifest.write_text(MANIFEST.format(model=load.MODEL))
        command = [sys.executable, "-m", "multimodel_router", "--fleet=processes", f"--manifest={manifest}"]
        environment = {"PYTHONPATH": _before_python_path(STANDIN), "BENCH_UPSTREAM": json.dumps(load.command(control))}
        with _router([*command, f"--port={port}", "--log-level=warning"], port, control, environment) as running:
            yield running


@contextmanager
def relay() -> Iterator[Running]:
    """No router, but a relay that knows nothing of HTTP: the floor of ours."""
    port = _free_port()
    with _upstream() as (upstream, control):
        command = [sys.executable, str(RELAY), str(port), str(upstream)]
        with _router(command, port, control) as running:
            yield running


@contextmanager
def nginx() -> Iterator[Running]:
    """The nginx that is installed, else that of the Debian package."""
    binary = _nginx_binary()
    port = _free_port()
    with _upstream() as (upstream, control), tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "nginx.conf"
        settings.write_text(NGINX_SETTINGS.format(folder=folder, upstream=upstream, port=port))
        with _router([str(binary), "-p", folder, "-c", str(settings), "-e", "stderr"], port, control) as running:
            yield running


@contextmanager
def sglang() -> Iterator[Running]:
    """The router of SGLang, with one worker."""
    python = _virtual_environment(SGLANG)
    with _upstream() as (upstream, control):
        command = [str(python), "-m", "sglang_router.launch_router", *_rust_router_arguments(upstream)]
        with _router([*command, f"--port={(port := _free_port())}"], port, control) as running:
            yield running


@contextmanager
def vllm() -> Iterator[Running]:
    """The router of vLLM, with one worker."""
    python = _virtual_environment(VLLM)
    with _upstream() as (upstream, control):
        command = [str(python), "-m", "vllm_router.launch_router", *_rust_router_arguments(upstream)]
        with _router([*command, f"--port={(port := _free_port())}"], port, control) as running:
            yield running


@contextmanager
def litellm() -> Iterator[Running]:
    """The proxy of LiteLLM, with one worker."""
    python = _virtual_environment(LITELLM)
    port = _free_port()
    with _upstream() as (upstream, control), tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "config.yaml"
        settings.write_text(LITELLM_SETTINGS.format(model=load.MODEL, upstream=upstream))
        command = [str(python.with_name("litellm")), f"--config={settings}", "--host=127.0.0.1", f"--port={port}"]
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        with _router([*command, "--telemetry=False"], port, control, environment) as running:
            yield running


WAYS: Mapping[str, Way] = {
    "direct": direct,
    "ours": ours,
    "relay": relay,
    "nginx": nginx,
    "sglang": sglang,
    "vllm": vllm,
    "litellm": litellm,
}


def _rust_router_arguments(upstream: int) -> list[str]:
    return [
        "--host=127.0.0.1",
        "--worker-urls",
        f"http://127.0.0.1:{upstream}",
        "--policy=round_robin",
        f"--prometheus-port={_free_port()}",
        "--log-level=error",
    ]


@contextmanager
def _upstream() -> Iterator[tuple[int, int]]:
    """Run upstream and clients; yields the upstream's port and the control port."""
    port, control = _free_port(), _free_port()
    with _started([*load.command(control), f"--port={port}"]):
        yield port, control


@contextmanager
def _router(
    command: Sequence[str], port: int, control: int, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run a router alone on its core until it answers; what it says is shown only when it does not start."""
    with tempfile.TemporaryFile("w+") as log:
        pinned = ["taskset", "-c", str(CORE), *command]
        with _started(pinned, log, environment) as process:
            try:
                yield _answering(Running(f"127.0.0.1:{port}", control, psutil.Process(process.pid)))
            except UnavailableError as error:
                log.seek(0)
                said = " ".join(log.read()[-300:].split())
                raise UnavailableError(f"{error} It said: {said}" if said else str(error)) from error


def _answering(running: Running) -> Running:
    """Return the way as soon as one stream passes through it without an error."""
    deadline = time.monotonic() + START_SECONDS
    problem = "nothing was sent"
    while time.monotonic() < deadline:
        if running.router and not running.router.is_running():
            raise UnavailableError("It ended at once.")
        try:
            seen = load.measure(running.control_port, running.target, load.Cell(1, 2, 0.001, ramp=0.01, measure=0.2))
        except httpx.TransportError as error:
            problem = f"the upstream does not answer ({error})"
            time.sleep(0.1)
            continue
        if seen.answers and not seen.errors:
            return running
        problem = seen.first_error or "no answer came"
    raise UnavailableError(f"It did not answer within {START_SECONDS:.0f} s: {problem}.")


@contextmanager
def _started(
    command: Sequence[str], log: IO[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own; when the block is left, end it and what it has started."""
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | (environment or {}), start_new_session=True
    )
    with contextlib.suppress(OSError):  # other work on the machine shall not be measured; only root may say so
        Path(f"/proc/{process.pid}/autogroup").write_text("-20")
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _virtual_environment(requirement: str) -> Path:
    """Return the Python of an environment that holds a peer, made at the first call."""
    folder = PEERS / requirement.replace("[proxy]", "").replace("==", "-")
    complete = folder / "complete"
    python = folder / "bin" / "python"
    if complete.exists():
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", requirement], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UnavailableError(f"{requirement} could not be installed: {' '.join(last)}") from error
    complete.touch()
    return python


def _nginx_binary() -> Path:
    """Return nginx: the installed one, or that of Debian's package, unpacked and not installed."""
    installed = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if installed:
        return Path(installed)
    folder = PEERS / "nginx"
    binary = folder / "usr" / "sbin" / "nginx"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "-q", "nginx"], cwd=folder, check=True, capture_output=True)
            package = next(folder.glob("nginx_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            raise UnavailableError(f"no nginx on PATH, and Debian's package could not be had: {error}") from error
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _before_python_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
