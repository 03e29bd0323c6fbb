"""What the pods of routers and model servers have in common: restricted security, probes, writable folders."""

from collections.abc import Mapping, Sequence
from typing import Any

from multimodel_api import names
from multimodel_operator.objects import Object

USER_ID = 65532
TERMINATION_MESSAGE_PATH = "/dev/termination-log"

TEMPORARY_FOLDER = "/tmp"  # noqa: S108  (an emptyDir of the pod)
HUB_CACHE_FOLDER = "/cache"
ROUTER_FOLDERS = {TEMPORARY_FOLDER: "tmp"}
SERVER_FOLDERS = {TEMPORARY_FOLDER: "tmp", HUB_CACHE_FOLDER: "hub-cache"}
"""Writable folders and the volume behind each; all else is read-only."""

START_SECONDS = 180
"""How long a process may take until it answers its liveness probe; loading a model comes after."""
START_PERIOD_SECONDS = 2


def restricted(container: dict[str, Any], *, grace_seconds: int) -> dict[str, Any]:
    """Return the pod spec around `container` that the restricted pod security standard admits."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    return {
        "containers": [container | {"securityContext": security, "terminationMessagePolicy": "File"}],
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": grace_seconds,
    }


def probes(port: str) -> dict[str, Any]:
    """Return the three probes: the process answers soon, keeps answering, and is ready only when it can serve."""

    def probe(path: str, **timing: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": port}, **timing}

    return {
        "startupProbe": probe(
            names.LIVE_PATH,
            periodSeconds=START_PERIOD_SECONDS,
            timeoutSeconds=5,
            failureThreshold=START_SECONDS // START_PERIOD_SECONDS,
        ),
        "livenessProbe": probe(names.LIVE_PATH, periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "readinessProbe": probe(names.READY_PATH, periodSeconds=2, timeoutSeconds=5, failureThreshold=2),
    }


def literal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return arguments that reach the process as they are: Kubernetes would replace `$(NAME)` in them."""
    return [argument.replace("$", "$$") for argument in arguments]


def environment(own: Mapping[str, str], given: Sequence[Object]) -> list[Object]:
    """Return a container's environment: `own`, where the manifest gives no variable of that name, and `given`."""
    taken = {variable.get("name") for variable in given}
    return [*({"name": name, "value": value} for name, value in own.items() if name not in taken), *given]


def mounts(folders: Mapping[str, str], given: Sequence[Object]) -> list[Object]:
    """Return the mounts of the writable folders (path → volume) that the manifest mounts nothing on, and `given`."""
    taken = {mount.get("mountPath") for mount in given}
    return [*({"name": name, "mountPath": path} for path, name in folders.items() if path not in taken), *given]


def volumes(folders: Mapping[str, str], given: Sequence[Object]) -> list[Object]:
    """Return an empty volume for each writable folder, where the manifest gives none of that name, and `given`."""
    taken = {volume.get("name") for volume in given}
    return [*({"name": name, "emptyDir": {}} for name in folders.values() if name not in taken), *given]
