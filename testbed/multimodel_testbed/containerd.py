"""Talks to the node's containerd through `ctr`: which images it has, and what a former run left in its records."""

import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from multimodel_testbed.errors import TestbedError

IMAGE_ID_LABEL = "multimodel.dev/image-id"


@dataclass(frozen=True)
class Containerd:
    """A running containerd, seen in the namespace of Kubernetes."""

    ctr: Path
    socket: Path

    def run(self, *arguments: str) -> str:
        """Run ctr and return what it prints; raises TestbedError with its words."""
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise TestbedError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def answers(self) -> bool:
        """Tell whether containerd is ready."""
        return subprocess.run(self._command("version"), capture_output=True, check=False).returncode == 0

    def has_image(self, name: str, image_id: str) -> bool:
        """Tell whether the image `name` is there with this id: the digest of its configuration."""
        wanted = [f"name=={name}", f'labels."{IMAGE_ID_LABEL}"=={image_id}']
        return name in self.run("images", "list", "--quiet", ",".join(wanted)).split()

    def blobs(self) -> set[str]:
        """Return the digests of the content that is there."""
        return set(self.run("content", "list", "--quiet").split())

    def import_image(self, name: str, image_id: str, write_archive: Callable[[IO[bytes]], None]) -> None:
        """Import the archive that `write_archive` writes, in place of what `name` was before."""
        former = re.search(rf"{re.escape(IMAGE_ID_LABEL)}=(sha256:\w+)", self.run("images", "list", f"name=={name}"))
        self._import(name, image_id, write_archive)
        if former and former[1] != image_id and former[1] in self.run("images", "list", "--quiet").split():
            self.run("images", "remove", former[1])  # the kubelet's name for it, which would keep its layers

    def _import(self, name: str, image_id: str, write_archive: Callable[[IO[bytes]], None]) -> None:
        process = subprocess.Popen(
            self._command("images", "import", "--local", "--label", f"{IMAGE_ID_LABEL}={image_id}", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            if process.stdin is None or process.stderr is None:
                raise TestbedError("ctr was started without pipes")
            with suppress(BrokenPipeError), process.stdin as archive:  # why ctr stopped reading, it says itself
                write_archive(archive)
            words = process.stderr.read().decode(errors="replace").strip()
        if process.returncode:
            raise TestbedError(f"ctr could not import {name}: {words}")

    def forget_containers(self) -> bool:
        """Remove the records and snapshots of a former run's containers; tell whether there were any."""
        containers = self.run("containers", "list", "--quiet").split()
        sandboxes = [line.split()[0] for line in self.run("sandboxes", "list").splitlines()[1:] if line.strip()]
        if containers:
            self.run("containers", "remove", *containers)
        if sandboxes:
            self.run("sandboxes", "remove", "--force", *sandboxes)
        return bool(containers or sandboxes)

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.ctr), f"--address={self.socket}", "--namespace=k8s.io", *arguments]
