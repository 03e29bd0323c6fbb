"""OCI image archives: of an image that another builder made, less what the receiver has; of a single program."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Blob:
    """A piece of an image, named by the digest of its `size` bytes."""

    digest: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def blob_of(content: bytes) -> Blob:
    """Return the blob that holds `content`."""
    return Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), lambda: io.BytesIO(content))


def write_archive(name: str, manifest: Blob, blobs: Iterable[Blob], output: IO[bytes]) -> None:
    """Write an archive of the image `name`; a blob of the manifest that is not in `blobs` the receiver must have."""
    entry = {**_descriptor(MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    with tarfile.open(fileobj=output, mode="w|") as archive:
        _add(archive, "oci-layout", blob_of(b'{"imageLayoutVersion": "1.0.0"}'))
        _add(archive, "index.json", blob_of(index))
        for blob in (manifest, *blobs):
            _add(archive, f"blobs/{blob.digest.replace(':', '/')}", blob)


def single_program_image(program: Path) -> tuple[Blob, list[Blob]]:
    """Return the manifest and the blobs of an image whose only file is `program`, at the root."""
    layer_file = io.BytesIO()
    with tarfile.open(fileobj=layer_file, mode="w") as layer_archive:
        _add(layer_archive, program.name, blob_of(program.read_bytes()), mode=0o755)
    layer = blob_of(layer_file.getvalue())
    settings = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }
    config = blob_of(json.dumps(settings).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, config),
        "layers": [_descriptor(LAYER, layer)],
    }
    return blob_of(json.dumps(manifest).encode()), [config, layer]


def _descriptor(media_type: str, blob: Blob) -> Mapping[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _add(archive: tarfile.TarFile, name: str, blob: Blob, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = blob.size, mode
    with blob.open() as content:
        archive.addfile(entry, content)
