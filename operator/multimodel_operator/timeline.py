"""Tells how long each part of a load took, once for each load that succeeded; pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from multimodel_api import pod_status
from multimodel_api.names import Component
from multimodel_api.pod_status import ContainerStatus, Pod, condition
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.status import MAX_LOADS, Load, LoadSeconds
from multimodel_api.timestamps import moment, seconds_between


class Run(NamedTuple):
    """One run of a model server: its pod, and when its container started."""

    pod: str
    started_at: str
    address: str | None
    """Where its server can be asked, if the pod has an address."""


Reports = Mapping[Run, LoadProgress | None]
"""What servers said of their loads; None for one that did not answer."""


def new_runs(known: Sequence[Load], pods: Sequence[Pod]) -> list[Run]:
    """Return the runs that have loaded and that are not known yet."""
    told = {(load.pod, load.started_at) for load in known}
    oldest = moment(known[-1].started_at) if len(known) >= MAX_LOADS else None
    runs = [run for pod in pods if pod_status.is_ready(pod) for run in _runs(pod)]
    return [
        run
        for run in runs
        if (run.pod, run.started_at) not in told and (oldest is None or moment(run.started_at) > oldest)
    ]


def loads(known: Sequence[Load], pods: Sequence[Pod], reports: Reports) -> list[Load]:
    """Return the last loads, the newest first: the known ones, and those that have been reported since."""
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    new = [_load(by_name[run.pod], run, reports[run]) for run in new_runs(known, pods) if run in reports]
    return sorted([*new, *known], key=lambda load: moment(load.started_at), reverse=True)[:MAX_LOADS]


def sentence(load: Load) -> str:
    """Return how long a load took in words."""
    parts = load.phases.model_dump(exclude_none=True)
    told = ", ".join(f"{part.replace('_', ' ')} {seconds:g} s" for part, seconds in parts.items())
    return f"{load.seconds:g} s ({told})" if told else f"{load.seconds:g} s"


def _runs(pod: Pod) -> list[Run]:
    server = _server(pod)
    started = pod_status.running_since(server) if server else None
    return [Run(pod["metadata"]["name"], started, pod_status.status_of(pod).get("podIP"))] if started else []


def _server(pod: Pod) -> ContainerStatus | None:
    return next((c for c in pod_status.containers(pod) if c["name"] == Component.MODEL_SERVER), None)


def _load(pod: Pod, run: Run, report: LoadProgress | None) -> Load:
    """Return a load; where the server did not tell how long it took, it ended when the pod became ready."""
    phases = LoadSeconds(**_before(pod, run), **_inside(report))
    parts: list[float] = list(phases.model_dump(exclude_none=True).values())
    begun = run.started_at if _is_restarted(pod) else pod["metadata"]["creationTimestamp"]
    seconds = sum(parts) if report else _between(begun, condition(pod, "Ready")["lastTransitionTime"])
    return Load(pod=run.pod, started_at=run.started_at, seconds=round(seconds, 1), phases=phases)


def _is_restarted(pod: Pod) -> bool:
    server = _server(pod)
    return bool(server and server.get("restartCount", 0))


def _before(pod: Pod, run: Run) -> dict[str, float]:
    """Return the seconds until the container ran; a restarted one had its node and its image."""
    scheduled = condition(pod, "PodScheduled").get("lastTransitionTime")
    if scheduled is None or _is_restarted(pod):
        return {}
    return {
        "scheduling": _between(pod["metadata"]["creationTimestamp"], scheduled),
        "image": _between(scheduled, run.started_at),
    }


def _between(earlier: str, later: str) -> float:
    """Return the seconds between two times that different machines may have told."""
    return max(0.0, seconds_between(earlier, later))


def _inside(report: LoadProgress | None) -> dict[str, float]:
    if report is None:
        return {}
    names = {
        "start": LoadPhase.STARTING,
        "download": LoadPhase.DOWNLOADING,
        "weights": LoadPhase.READING_WEIGHTS,
        "warm_up": LoadPhase.WARMING_UP,
    }
    return {name: round(report.seconds[phase], 1) for name, phase in names.items() if phase in report.seconds}
