"""What kopf watches: every event of a MultiModel or of its Deployments and pods asks for the same reconciliation.

Only low-level event handlers are registered: kopf then writes nothing at all, neither finalizers nor annotations.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from multimodel_api import names
from multimodel_operator import objects
from multimodel_operator.objects import Key

OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_INSTANCE}"
"""Selects on the API server, so that other people's pods never travel here."""

WATCH_SERVER_SECONDS = 300
KOPF_WORKERS = 32


def registry(trigger: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """Return kopf's registry with handlers that call `trigger` with the MultiModel that an event is about."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**facts: Any) -> kopf.ConnectionInfo | None:
        in_pod = kopf.login_with_service_account(**facts)
        return by_address(in_pod, os.environ) if in_pod else kopf.login_with_kubeconfig(**facts)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)
    async def multimodel_changed(namespace: str | None, name: str | None, **_: Any) -> None:
        trigger(Key(namespace or "", name or ""))

    @kopf.on.event("apps", "v1", objects.DEPLOYMENT.plural, registry=handlers)
    @kopf.on.event("", "v1", objects.POD.plural, registry=handlers)
    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        trigger(Key(namespace or "", labels[names.LABEL_INSTANCE]))

    return handlers


def by_address(in_pod: kopf.ConnectionInfo, environment: Mapping[str, str]) -> kopf.ConnectionInfo:
    """Return a pod's connection with the address that the kubelet gave it: kopf's own needs the cluster's DNS."""
    host, port = (environment[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
    return dataclasses.replace(in_pod, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no posts, no peering, no look at CRDs and namespaces, bounded workers."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.queueing.worker_limit = KOPF_WORKERS
    settings.watching.server_timeout = WATCH_SERVER_SECONDS
    settings.watching.label_selectors["apps", "v1", objects.DEPLOYMENT.plural] = OURS
    settings.watching.label_selectors["", "v1", objects.POD.plural] = OURS
    return settings
