"""The router's metrics: every name in one place; the label `model` is a name of the manifest, never a client's text.

Several worker processes share their numbers through the folder that PROMETHEUS_MULTIPROC_DIR names.
"""

import os
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PREFIX = "multimodel_router"

GaugeMode = Literal["livesum", "livemax", "livemostrecent"]

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The metrics of one router, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_models: dict[str, ModelMetrics] = {}
        self.requests = self._counter("requests", "Inference requests answered.", "status")
        self.in_flight = self._gauge("requests_in_flight", "Requests held or relayed now.")
        self.last_request = self._gauge(
            "last_request_timestamp_seconds", "When a request last came or ended.", mode="livemax"
        )
        self.waiting = self._gauge("requests_waiting", "Requests that wait for a model now.")
        self.refusals = self._counter("requests_refused", "Requests that found the waiting room full.")
        self.wait_seconds = self._histogram("wait_seconds", "Time that requests waited for a model that was not ready.")
        self.first_byte_seconds = self._histogram(
            "first_byte_seconds", "Time from a request to the first byte of its answer."
        )
        self.request_seconds = self._histogram("request_seconds", "Time from a request to the end of its answer.")
        self.bytes = self._counter("answer_bytes", "Bytes of answers sent to clients.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, as the answers' usage says.")
        self.completion_tokens = self._counter("completion_tokens", "Generated tokens, as the answers' usage says.")
        self.retries = self._counter("retries", "Requests sent again because no byte of an answer had come.", "cause")
        self.broken_streams = self._counter(
            "broken_streams", "Answers that a model server broke off after their first byte."
        )
        self.resumed_streams = self._counter(
            "resumed_streams", "Broken streams that another model server went on with."
        )
        self.ejections = self._counter(
            "ejections", "Endpoints sent no more requests until they say again that they serve their model.", "cause"
        )
        self.failures_in_a_row = self._gauge(
            "failures_in_a_row", "Requests that failed on our side since the last that did not.", mode="livemax"
        )
        self.wakes = self._counter("wakes", "Times an unloaded model was loaded.")
        self.ready_endpoints = self._gauge(
            "ready_endpoints", "Endpoints that can take requests.", mode="livemostrecent"
        )

    def of(self, model: str) -> "ModelMetrics":
        """Return a model's metrics; the same ones every time, for finding them by label takes long."""
        found = self._of_models.get(model)
        if found is None:
            found = self._of_models[model] = ModelMetrics(self, model)
        return found

    def under_way(self, model: str) -> "ModelMetrics":
        """Return what counts a request as in flight for the length of a `with` block."""
        return self.of(model)

    def page(self) -> bytes:
        """Return the text that Prometheus reads: of all workers where there are several."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", meaning, ["model", *labels], registry=self.registry)

    def _gauge(self, name: str, meaning: str, mode: GaugeMode = "livesum") -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", meaning, ["model"], registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, meaning: str) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", meaning, ["model"], buckets=_SECONDS, registry=self.registry)


class ModelMetrics:
    """What every request of a model touches."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.answered: dict[int, Counter] = _Answered(metrics, model)
        self.in_flight = metrics.in_flight.labels(model)
        self.last_request = metrics.last_request.labels(model)
        self.first_byte_seconds = metrics.first_byte_seconds.labels(model)
        self.request_seconds = metrics.request_seconds.labels(model)
        self.bytes = metrics.bytes.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.completion_tokens = metrics.completion_tokens.labels(model)
        self.failures_in_a_row = metrics.failures_in_a_row.labels(model)

    def __enter__(self) -> None:
        """Count a request as in flight, and remember when the model was last used."""
        self.in_flight.inc()
        self.last_request.set_to_current_time()

    def __exit__(self, *_: object) -> None:
        """Count it no more."""
        self.in_flight.dec()
        self.last_request.set_to_current_time()


class _Answered(dict[int, Counter]):
    """The counters of answers by status, found once each."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._model = model

    def __missing__(self, status: int) -> Counter:
        counter = self[status] = self._metrics.requests.labels(self._model, str(status))
        return counter
