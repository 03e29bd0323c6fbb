"""Every name that two parts must agree on: the API group, object names, labels, ports, condition types."""

import hashlib
import re
from enum import StrEnum

GROUP = "multimodel.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "MultiModel"
PLURAL = "multimodels"
SINGULAR = "multimodel"
SHORT_NAME = "mm"

DEFAULT_MODEL_ID = "default"
"""The reserved id that always names the resource's default model."""

ROUTER_PORT = 1234
MODEL_SERVER_PORT = 8000

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_INSTANCE = f"{GROUP}/multimodel"
LABEL_MODEL = f"{GROUP}/model"
MANAGED_BY = "multimodel-operator"

LIVE_PATH = "/health/live"
READY_PATH = "/health/ready"
PROGRESS_PATH = "/health/progress"

RESIDENCY_GATE = f"{GROUP}/residency"
"""The scheduling gate of pods that have to wait until their model is let in."""

_MAX_LABEL = 63


class Component(StrEnum):
    """The parts that run in pods, as `app.kubernetes.io/component` says it."""

    ROUTER = "router"
    MODEL_SERVER = "modelserver"


class FieldManager(StrEnum):
    """Who wrote a field, for server-side apply."""

    OPERATOR = "multimodel-operator"
    AUTOSCALER = "multimodel-autoscaler"
    ROUTER = "multimodel-router"


def command_manager(model: str) -> str:
    """Return the field manager of a model's last command in the status: one for each, so that none undoes another."""
    return f"{FieldManager.ROUTER}/{model}"


def calls_manager(model: str) -> str:
    """Return the field manager of what routers tell of a model's calls in the status."""
    return f"{command_manager(model)}/calls"


class ConditionType(StrEnum):
    """The condition types of a MultiModel."""

    READY = "Ready"
    MODELS_READY = "ModelsReady"
    ROUTER_READY = "RouterReady"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    CALLS_FAILING = "CallsFailing"
    FITS = "Fits"


def router_name(multimodel: str) -> str:
    """Name of the router's Deployment, Service and ServiceAccount."""
    return bounded_name(f"{multimodel}-router")


def model_object_name(multimodel: str, model: str) -> str:
    """Name of the Deployment and Service of one model of a MultiModel."""
    return bounded_name(f"{multimodel}-model-{model}")


def models_name(multimodel: str) -> str:
    """Name of what all models of a MultiModel share."""
    return bounded_name(f"{multimodel}-models")


def bounded_name(name: str) -> str:
    """Return `name` if it is a valid object name, else a shortened one that a digest keeps unique."""
    if len(name) <= _MAX_LABEL and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[: _MAX_LABEL - len(digest) - 1].rstrip("-")
    return f"{readable or 'x'}-{digest}"
