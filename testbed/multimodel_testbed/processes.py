"""Child processes of the cluster: each with a log file, gone when their parent is gone, stopped in reverse order."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodel_testbed.errors import StartError

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
LOG_TAIL_CHARACTERS = 3000


@dataclass(frozen=True)
class Child:
    """One running program and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_tail(self) -> str:
        """Return the last words of the program."""
        return self.log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]


class Processes:
    """The programs of one cluster.

    Start them from a thread that lives as long as the cluster: Linux ends a child when the thread that started it ends.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str | Path]) -> Child:
        """Start a program in a session of its own, its output going to `<name>.log`."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log_folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*_tied_to_parent(), *(str(part) for part in command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def wait_until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` holds; raises StartError where a program ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while not condition():
            for child in self._children:
                if child.process.poll() is not None:
                    status = child.process.returncode
                    raise StartError(
                        f"{child.name} ended (status {status}); the end of {child.log}:\n{child.log_tail()}"
                    )
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- the end of {child.log}:\n{child.log_tail()}" for child in self._children)
                raise StartError(f"{what}: not so within {seconds:.0f} s\n{tails}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End all programs, the last started first."""
        while self._children:
            self.stop_one(self._children[-1])

    def stop_one(self, child: Child) -> None:
        """End one program: asked first, forced after a grace period."""
        self._children.remove(child)
        child.process.terminate()
        try:
            child.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()

    def first_ended(self) -> Child | None:
        """Return a program that has ended by itself, if any has."""
        return next((child for child in self._children if child.process.poll() is not None), None)


def _tied_to_parent() -> list[str]:
    """Return the command prefix that makes Linux end the program when its parent dies (setpriv replaces itself)."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
