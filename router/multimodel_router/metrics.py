"""The router's metrics: every name in one place; the label `model` is a name of the manifest, never a client's text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one router, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "multimodel_router_requests", "Inference requests answered.", ["model", "status"], registry=self.registry
        )
        self.in_flight = Gauge(
            "multimodel_router_requests_in_flight", "Requests held or relayed now.", ["model"], registry=self.registry
        )
        self.waiting = Gauge(
            "multimodel_router_requests_waiting",
            "Requests that wait for a model now.",
            ["model"],
            registry=self.registry,
        )
        self.wait_seconds = Histogram(
            "multimodel_router_wait_seconds",
            "Time that requests waited for a model that was not ready.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "multimodel_router_first_byte_seconds",
            "Time from a request to the first byte of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "multimodel_router_retries",
            "Requests sent again because no byte of an answer had come.",
            ["model", "cause"],
            registry=self.registry,
        )
        self.broken_streams = Counter(
            "multimodel_router_broken_streams",
            "Answers that a model server broke off after their first byte.",
            ["model"],
            registry=self.registry,
        )
        self.wakes = Counter(
            "multimodel_router_wakes", "Times an unloaded model was loaded.", ["model"], registry=self.registry
        )
        self.ready_endpoints = Gauge(
            "multimodel_router_ready_endpoints", "Endpoints that can take requests.", ["model"], registry=self.registry
        )

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
