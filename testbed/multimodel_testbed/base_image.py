"""The image that the Dockerfile is built on where no registry is: a small Debian with Python, by debootstrap."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from multimodel_testbed import buildah, folders
from multimodel_testbed.errors import TestbedError
from multimodel_testbed.progress import Progress

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "gcc", "libc6-dev", "libpython3-dev", "python3", "python3-venv")
UNNEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def ensure() -> str:
    """Return the base image's name, making the image first where it is not there yet (about a minute)."""
    recipe = " ".join([SUITE, *PACKAGES, *UNNEEDED])
    name = f"localhost/multimodel-base:{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with folders.exclusive(folders.cache_root() / "base-image.lock"):
        if not buildah.has_image(name):
            _make(name)
    return name


def _make(name: str) -> None:
    with tempfile.TemporaryDirectory(dir=folders.cache_root(), prefix="base-image-") as scratch:
        root = Path(scratch) / "root"
        _debootstrap(root, folders.cache_root() / "logs" / "debootstrap.log")
        for path in UNNEEDED:
            shutil.rmtree(root / path)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        container = buildah.run("from", "scratch")
        buildah.run("copy", "--quiet", container, str(root), "/")
        buildah.run("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        buildah.run("config", "--cmd", "python3", container)
        buildah.run("commit", "--quiet", "--rm", container, name)


def _debootstrap(root: Path, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    with (
        Progress(f"making the base image (Debian {SUITE}, {', '.join(PACKAGES)})") as progress,
        log.open("wb") as output,
    ):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        progress.follow(process)
        if process.returncode:
            raise TestbedError(f"debootstrap failed; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
