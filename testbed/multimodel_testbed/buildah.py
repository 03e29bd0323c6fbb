"""Builds images with buildah, in a storage of its own in the cache: the base image and built layers are kept."""

import json
import os
import subprocess
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from multimodel_testbed import folders
from multimodel_testbed.errors import TestbedError
from multimodel_testbed.oci import Blob, blob_of
from multimodel_testbed.progress import Progress

HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONFIGURATIONS = (
    Path("/etc/pip.conf"),
    Path.home() / ".config" / "pip" / "pip.conf",
    Path.home() / ".pip" / "pip.conf",
)


def run(*arguments: str) -> str:
    """Run buildah and return what it prints; raises TestbedError with its words."""
    return _output("buildah", *arguments).decode().strip()


def run_long(step: str, log: Path, *arguments: str) -> None:
    """Run buildah with progress, its output going to `log`; raises TestbedError with the end of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with Progress(step) as progress, log.open("wb") as output:
        process = subprocess.Popen(
            _command("buildah", *arguments),
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        progress.follow(process)
        if process.returncode:
            raise TestbedError(f"{step} failed; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}")


def has_image(name: str) -> bool:
    """Tell whether there is an image `name`."""
    return bool(run("images", "--quiet", "--filter", f"reference={name}"))


def image_id(name: str) -> str:
    """Return the id of the image `name`: the digest of its configuration."""
    return f"sha256:{run('inspect', '--type', 'image', '--format', '{{.FromImageID}}', name)}"


def manifest_and_blobs(name: str, present: Set[str]) -> tuple[Blob, list[Blob]]:
    """Return an image's manifest and its blobs, less those whose digests are in `present`.

    Layers come as they lie in the storage, uncompressed: compressing them would cost minutes.
    """
    manifest_bytes = _image_data(name, "manifest")
    manifest: dict[str, Any] = json.loads(manifest_bytes)
    config = blob_of(_image_data(name, manifest["config"]["digest"]))
    wanted = [layer for layer in manifest["layers"] if layer["digest"] not in present]
    ids = {
        layer.get("diff-digest"): layer["id"] for layer in json.loads(_output("containers-storage", "layers", "--json"))
    }
    layers = [Blob(layer["digest"], layer["size"], partial(_open_layer, ids[layer["digest"]])) for layer in wanted]
    return blob_of(manifest_bytes), [config, *layers]


def host_mounts() -> list[str]:
    """Return the options that lend a build the host's certificates, pip settings and pip cache; no layer holds them."""
    pip_cache = folders.cache_root() / "pip"
    pip_cache.mkdir(parents=True, exist_ok=True)
    mounts = [f"{pip_cache}:/root/.cache/pip"]
    if HOST_CERTIFICATES.exists():
        mounts.append(f"{HOST_CERTIFICATES}:{HOST_CERTIFICATES}:ro")
    found = next((path for path in PIP_CONFIGURATIONS if path.exists()), None)
    if found:
        mounts.append(f"{found}:/etc/pip.conf:ro")
    return [f"--volume={mount}" for mount in mounts]


def _image_data(name: str, item: str) -> bytes:
    return _output("containers-storage", "get-image-data", name, item)


@contextmanager
def _open_layer(layer_id: str) -> Iterator[IO[bytes]]:
    process = subprocess.Popen(_command("containers-storage", "diff", layer_id), stdout=subprocess.PIPE)
    with process:
        if process.stdout is None:
            raise TestbedError("containers-storage was started without a pipe")
        yield process.stdout
    if process.returncode:
        raise TestbedError(f"containers-storage could not read layer {layer_id} (status {process.returncode})")


def _output(program: str, *arguments: str) -> bytes:
    done = subprocess.run(_command(program, *arguments), capture_output=True, check=False)
    if done.returncode:
        raise TestbedError(f"{program} {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()[-3000:]}")
    return done.stdout


def _command(program: str, *arguments: str) -> list[str]:
    storage = folders.cache_root() / "buildah"
    places = [str(storage / "storage"), str(storage / "run"), "overlay"]
    if program == "buildah":
        options = zip(("--root", "--runroot", "--storage-driver"), places, strict=True)
        return [program, *(f"{option}={place}" for option, place in options), *arguments]
    options = zip(("--graph", "--run", "--storage-driver"), places, strict=True)
    command, *rest = arguments
    return [program, command, *(f"{option}={place}" for option, place in options), *rest]
