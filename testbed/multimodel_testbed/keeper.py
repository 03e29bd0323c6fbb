"""Keeps a node running after the command that asked for it has returned, until it is told to stop.

The keeper holds the node's lock all its life, and the processes it started end with it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from multimodel_testbed import binaries, folders, host, leftovers
from multimodel_testbed.errors import StartError, TestbedError
from multimodel_testbed.node import LOCK, Node, node, only_node_here
from multimodel_testbed.progress import Progress

PID_FILE = LOCK.with_suffix(".pid")
LOG = LOCK.with_suffix(".log")
READY = leftovers.RUN / "ready"
KUBECONFIG = leftovers.RUN / "admin.kubeconfig"
STOP_SECONDS = 90.0
POLL_SECONDS = 0.2
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def keep() -> None:
    """Run a node in this process until SIGTERM or SIGINT; raises StartError where one of its programs ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with node() as running:
        PID_FILE.write_text(str(os.getpid()))
        READY.touch()
        while signal.sigtimedwait(SIGNALS, 1.0) is None:
            _require_alive(running)


def is_running() -> bool:
    """Tell whether a node runs on this machine."""
    if not LOCK.exists():
        return False
    with folders.exclusive_or_refused(LOCK) as free:
        return not free


def up() -> Path:
    """Start a node that stays, and return its kubeconfig; a node that runs already is left as it is.

    Raises TestbedError where it does not start.
    """
    host.require_root()
    host.require_programs(host.NODE_NEEDS)
    binaries.ensure_all(binaries.ALL_PROGRAMS)
    if not (is_running() and READY.exists()):
        with Progress("starting the node") as progress:
            _start_keeper(progress)
    return KUBECONFIG


def down() -> None:
    """Stop the node, and clear away what a crashed one left."""
    host.require_root()
    if is_running():
        os.kill(int(PID_FILE.read_text()), signal.SIGTERM)
        _wait_until_stopped()
    with only_node_here():
        leftovers.sweep()
        PID_FILE.unlink(missing_ok=True)


def _start_keeper(progress: Progress) -> None:
    with LOG.open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "multimodel_testbed", "keep"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while not (PID_FILE.exists() and PID_FILE.read_text() == str(keeper.pid) and READY.exists()):
        if keeper.poll() is not None:
            raise StartError(LOG.read_text(errors="replace").strip())
        progress.beat()
        time.sleep(POLL_SECONDS)


def _wait_until_stopped() -> None:
    deadline = time.monotonic() + STOP_SECONDS
    with Progress("stopping the node") as progress:
        while is_running():
            if time.monotonic() > deadline:
                raise TestbedError(f"the node's keeper did not stop within {STOP_SECONDS:.0f} s; its log: {LOG}")
            progress.beat()
            time.sleep(POLL_SECONDS)


def _require_alive(running: Node) -> None:
    ended = running.processes.first_ended()
    if ended:
        raise StartError(f"{ended.name} has ended; the end of {ended.log}:\n{ended.log_tail()}")
