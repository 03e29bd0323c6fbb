"""Merges a manifest's patch into a pod template, of which labels and restricted security stay; pure.

Maps are merged key by key and null removes a key. Of a list whose items have a key of their own (`name`, `mountPath`)
containers are merged, other items take the place of ours; any other list takes the place of ours.
"""

from collections.abc import Mapping
from typing import Any

from multimodel_api.pod_settings import PodTemplate
from multimodel_operator import pods
from multimodel_operator.objects import Object

_CONTAINERS = ("initContainers", "containers")
_ITEM_KEYS = {
    **dict.fromkeys(_CONTAINERS, "name"),
    **dict.fromkeys(("volumes", "env", "imagePullSecrets", "resourceClaims", "claims"), "name"),
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
}
_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
_KEPT_FIELDS = ("automountServiceAccountToken", "schedulingGates")
_OWN_USERS = ("runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups")
"""Fields of a security context that a patch may set: any user is good that is not root."""


def patched(template: Object, patch: PodTemplate) -> dict[str, Any]:
    """Return the pod template with the patch merged into it, as safe and as well labelled as before."""
    metadata = {**template["metadata"], "labels": {**patch.metadata.labels, **template["metadata"]["labels"]}}
    if patch.metadata.annotations:
        metadata["annotations"] = patch.metadata.annotations
    spec = _merged(template["spec"], patch.spec)
    return {"metadata": metadata, "spec": _secured(spec, template["spec"])}


def _merged(ours: Object, patch: Object) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        elif isinstance(value, list) and isinstance(merged.get(key), list) and key in _ITEM_KEYS:
            merged[key] = _merged_items(merged[key], value, key)
        else:
            merged[key] = value
    return merged


def _merged_items(ours: list[Any], patch: list[Any], field: str) -> list[Any]:
    item_key = _ITEM_KEYS[field]
    items = {_identity(item, item_key, number): item for number, item in enumerate(ours)}
    for number, item in enumerate(patch, start=len(ours)):
        identity = _identity(item, item_key, number)
        known = items.get(identity)
        items[identity] = _merged(known, item) if field in _CONTAINERS and isinstance(known, Mapping) else item
    return list(items.values())


def _identity(item: Any, item_key: str, number: int) -> Any:
    """Return what tells an item from others: its key, or its place in the list where it has none."""
    key = item.get(item_key) if isinstance(item, Mapping) else None
    return key if isinstance(key, str | int) else (number,)


def _secured(spec: Object, ours: Object) -> dict[str, Any]:
    """Return the pod spec with the security of `ours`; containers that a patch adds get it as well."""
    secured = {key: value for key, value in spec.items() if key not in _HOST_FIELDS}
    secured |= {key: ours[key] for key in _KEPT_FIELDS if key in ours}
    secured["securityContext"] = {**_users(spec.get("securityContext")), **pods.POD_SECURITY}
    for field in _CONTAINERS:
        if isinstance(spec.get(field), list):
            secured[field] = [_secured_container(container) for container in spec[field]]
    return secured


def _secured_container(container: Any) -> Any:
    if not isinstance(container, Mapping):
        return container  # the API server says best what is wrong with it
    return {
        **container,
        "securityContext": {**_users(container.get("securityContext")), **pods.CONTAINER_SECURITY},
    }


def _users(context: Any) -> dict[str, Any]:
    return {key: context[key] for key in _OWN_USERS if key in context} if isinstance(context, Mapping) else {}
