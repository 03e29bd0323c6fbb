"""What the pods of routers and model servers have in common: restricted security, probes, writable folders."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from multimodel_api import names
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.placement import Placement
from multimodel_operator.objects import Object

USER_ID = 65532
TERMINATION_MESSAGE_PATH = "/dev/termination-log"

TEMPORARY_FOLDER = "/tmp"  # noqa: S108  (an emptyDir of the pod)
HUB_CACHE_FOLDER = "/cache"
HUB_CACHE = "hub-cache"
KERNEL_CACHE_FOLDER = f"{HUB_CACHE_FOLDER}/triton"
"""On the same volume: what was compiled once need not be compiled at the next start."""
ROUTER_FOLDERS = {TEMPORARY_FOLDER: "tmp"}
SERVER_FOLDERS = {TEMPORARY_FOLDER: "tmp", HUB_CACHE_FOLDER: HUB_CACHE}
"""Writable folders and the volume behind each; all else is read-only."""

SECRET_MODE = 0o440
"""The files of a Secret belong to root; the pod's group may read them."""

START_SECONDS = 180
"""How long a router may take until it answers its liveness probe."""
START_PERIOD_SECONDS = 2
STUCK_GRACE_SECONDS = 30
"""How long a process that has failed its probes may take to end; it has nothing to finish."""


POD_SECURITY: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def restricted(container: dict[str, Any], *, grace_seconds: int) -> dict[str, Any]:
    """Return the pod spec around `container` that the restricted pod security standard admits."""
    return {
        "containers": [container | {"securityContext": CONTAINER_SECURITY, "terminationMessagePolicy": "File"}],
        "enableServiceLinks": False,
        "securityContext": {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID, **POD_SECURITY},
        "terminationGracePeriodSeconds": grace_seconds,
    }


def placement(where: Placement) -> dict[str, Any]:
    """Return the fields of a pod spec that say which nodes take it; none for what is unset."""
    return where.model_dump(by_alias=True, include=set(Placement.model_fields), exclude_defaults=True)


def image_pull_secrets(spec: MultiModelSpec) -> list[Object]:
    """Return the references to the Secrets that images are pulled with."""
    return [secret.model_dump() for secret in spec.image_pull_secrets]


def probes(
    port: str, *, start_path: str = names.LIVE_PATH, start_seconds: int = START_SECONDS, https: bool = False
) -> dict[str, Any]:
    """Return the three probes: the process starts in time, keeps answering, and is ready only when it can serve.

    Until `start_path` has answered, which it must within `start_seconds`, the kubelet asks nothing else.
    """

    def probe(path: str, **timing: int) -> dict[str, Any]:
        scheme = {"scheme": "HTTPS"} if https else {}
        return {"httpGet": {"path": path, "port": port, **scheme}, **timing}

    return {
        "startupProbe": probe(
            start_path,
            periodSeconds=START_PERIOD_SECONDS,
            timeoutSeconds=5,
            failureThreshold=start_seconds // START_PERIOD_SECONDS,
            terminationGracePeriodSeconds=STUCK_GRACE_SECONDS,
        ),
        "livenessProbe": probe(
            names.LIVE_PATH,
            periodSeconds=10,
            timeoutSeconds=5,
            failureThreshold=3,
            terminationGracePeriodSeconds=STUCK_GRACE_SECONDS,
        ),
        "readinessProbe": probe(names.READY_PATH, periodSeconds=2, timeoutSeconds=5, failureThreshold=2),
    }


def literal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments that reach the process as they are: Kubernetes would replace `$(NAME)` in them."""
    return [argument.replace("$", "$$") for argument in arguments]


def environment(own: Mapping[str, Object], given: Sequence[Object]) -> list[Object]:
    """Return a container's environment: `own`, where the manifest gives no variable of that name, and `given`."""
    taken = {variable.get("name") for variable in given}
    return [*({"name": name, **source} for name, source in own.items() if name not in taken), *given]


def mounts(folders: Mapping[str, str], given: Sequence[Object]) -> list[Object]:
    """Return the mounts of the writable folders (path → volume) that the manifest mounts nothing on, and `given`."""
    taken = {mount.get("mountPath") for mount in given}
    return [*({"name": name, "mountPath": path} for path, name in folders.items() if path not in taken), *given]


def volumes(
    folders: Mapping[str, str], given: Sequence[Object], sources: Mapping[str, Object] = MappingProxyType({})
) -> list[Object]:
    """Return a volume for each writable folder, where the manifest gives none of that name, and `given`.

    It is empty at first, unless `sources` (volume → source) says what it is.
    """
    taken = {volume.get("name") for volume in given}
    own = [{"name": name, **sources.get(name, {"emptyDir": {}})} for name in folders.values() if name not in taken]
    return [*own, *given]


def secret_mounts(secrets: Mapping[str, str]) -> list[Object]:
    """Return the read-only mounts of Secrets (path → name of the Secret)."""
    return [{"name": _secret_volume(path), "mountPath": path, "readOnly": True} for path in secrets]


def secret_volumes(secrets: Mapping[str, str]) -> list[Object]:
    """Return the volumes behind `secret_mounts`; a pod does not start before they exist."""
    return [
        {"name": _secret_volume(path), "secret": {"secretName": secret, "defaultMode": SECRET_MODE}}
        for path, secret in secrets.items()
    ]


def _secret_volume(path: str) -> str:
    return path.rsplit("/", 1)[1]
