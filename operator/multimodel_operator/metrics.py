"""The operator's metrics: every name in one place."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_PREFIX = "multimodel_operator"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refusals = self._counter("refused_steps", "Objects that the API server did not accept.", "kind")
        self.writes = self._counter("writes", "Objects written.", "kind", "verb")
        self.api_requests = self._counter(
            "api_requests", "Requests to the API server; the status is `none` where no answer came.", "method", "status"
        )

    def of_work(self, name: str) -> tuple[Histogram, Counter]:
        """Return how long each piece of a kind of work on a MultiModel took, and how many failed for which cause."""
        meaning = f"Time that one look at a MultiModel took, to {name} it."
        seconds = Histogram(f"{_PREFIX}_{name}_seconds", meaning, buckets=_SECONDS, registry=self.registry)
        return seconds, self._counter(f"{name}_errors", "Looks that failed and are taken again.", "cause")

    def watch(self, name: str, meaning: str, look: Callable[[], float]) -> None:
        """Publish what `look` returns at each reading of the page."""
        Gauge(f"{_PREFIX}_{name}", meaning, registry=self.registry).set_function(look)

    def watch_each(self, name: str, meaning: str, label: str, look: Callable[[], Mapping[str, float]]) -> None:
        """Publish what `look` returns at each reading of the page, a number for each value of a label."""
        self.registry.register(_Numbers(f"{_PREFIX}_{name}", meaning, label, look))

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", meaning, labels, registry=self.registry)


class _Numbers(Collector):
    """A gauge whose numbers are looked up when they are asked for."""

    def __init__(self, name: str, meaning: str, label: str, look: Callable[[], Mapping[str, float]]) -> None:
        self._name = name
        self._meaning = meaning
        self._label = label
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauge as it is now."""
        family = GaugeMetricFamily(self._name, self._meaning, labels=[self._label])
        for value, number in self._look().items():
            family.add_metric([value], number)
        yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauge without numbers: what it counts may not be known yet."""
        yield GaugeMetricFamily(self._name, self._meaning, labels=[self._label])
