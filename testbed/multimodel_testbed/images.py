"""Builds the Dockerfile's targets and gives them to the node: layers are kept, and only what changed is moved."""

from functools import partial
from pathlib import Path

from multimodel_testbed import base_image, buildah, folders, host, oci
from multimodel_testbed.containerd import Containerd
from multimodel_testbed.node import Node
from multimodel_testbed.progress import Progress

TARGETS = ("operator", "router", "modelserver")
TAG = "e2e"


def name_of(target: str, tag: str = TAG) -> str:
    """Return the image's name for manifests; pods that use it need `imagePullPolicy: Never` or `IfNotPresent`."""
    return f"multimodel/{target}:{tag}"


def build_and_import(running: Node, target: str, source: Path, tag: str = TAG) -> str:
    """Build one target of the Dockerfile in `source` and give it to the node; returns the image's name.

    Raises MissingPackagesError, or TestbedError with the end of the build's log.
    """
    name = name_of(target, tag)
    build(source, target, name)
    load(running.containerd, name)
    return name


def build(source: Path, target: str, name: str) -> None:
    """Build one target of the Dockerfile in `source`, with the host's network settings lent to it."""
    host.require_root()
    host.require_programs(host.IMAGE_NEEDS)
    base = base_image.ensure()
    options = ["--layers", "--pull-never", "--target", target, "--build-arg", f"BASE_IMAGE={base}"]
    options += [*buildah.host_mounts(), "--tag", _local(name)]
    log = folders.cache_root() / "logs" / f"image-{target}.log"
    buildah.run_long(f"building image {name}", log, "build", *options, str(source))


def load(containerd: Containerd, name: str) -> None:
    """Import a built image into the node, unless it is there already; layers that are there are not moved again."""
    known_as, image_id = f"docker.io/{name}", buildah.image_id(_local(name))
    if containerd.has_image(known_as, image_id):
        return
    with Progress(f"importing image {name}"):
        manifest, blobs = buildah.manifest_and_blobs(_local(name), containerd.blobs())
        containerd.import_image(known_as, image_id, partial(oci.write_archive, known_as, manifest, blobs))


def _local(name: str) -> str:
    return f"localhost/{name}"
