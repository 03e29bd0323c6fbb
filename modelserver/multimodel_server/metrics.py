"""All metric names of a model server. Every series has the label `model`: the id that replies name."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from multimodel_api.progress import LoadProgress

PREFIX = "multimodel"

_FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN_TOKENS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 10)


class EngineTotal:
    """A counter of what each engine counts from zero: a rebooted one begins again."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last = 0

    def reached(self, total: int) -> None:
        """Note how far the engine has counted."""
        self._counter.inc(total if total < self._last else total - self._last)
        self._last = total


class Metrics:
    """The metrics of one model server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self.requests_running = self._gauge("requests_running", "Requests that the engine computes.")
        self.requests_waiting = self._gauge("requests_waiting", "Requests that wait in the engine.")
        self.kv_blocks_used = self._gauge("kv_blocks_used", "KV cache blocks in use.")
        self.requests_capacity = self._gauge("requests_capacity", "Requests that the engine computes at once at most.")
        self.kv_blocks_total = self._gauge("kv_blocks_total", "KV cache blocks.")
        self.preemptions = self._total("preemptions", "Requests put back because the KV cache was full.")
        self.prefix_lookups = self._total("prefix_lookup_tokens", "Prompt tokens looked for in the prefix cache.")
        self.prefix_hits = self._total("prefix_hit_tokens", "Prompt tokens found in the prefix cache.")
        self.prefix_evictions = self._total("prefix_evictions", "Cached blocks that gave way to others.")
        self.late_compilations = self._total("late_compilations", "Kernels that requests had to wait for.")
        self.queue_seconds = self._histogram(
            "queue_time_seconds", "From a request's arrival in the engine to its first step.", _FIRST_TOKEN_SECONDS
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generated_tokens = self._counter("generated_tokens", "Tokens of answers.")
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST_TOKEN_SECONDS
        )
        self.between_tokens_seconds = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _BETWEEN_TOKENS_SECONDS
        )
        self.engine_reboots = self._counter("engine_reboots", "Engines that replaced a dead one.")
        self._completed = Counter(
            f"{PREFIX}_requests_completed", "Requests that ended.", ["model", "reason"], registry=self._registry
        )
        self._load_seconds = Gauge(
            f"{PREFIX}_load_seconds", "Seconds of the last load.", ["model", "phase"], registry=self._registry
        )

    def completed(self, reason: str) -> None:
        """Count a request that ended by `stop`, `length`, `cancelled` or `error`."""
        self._completed.labels(self._model, reason).inc()

    def loaded(self, progress: LoadProgress) -> None:
        """Note how long each phase of a load took."""
        for phase, seconds in progress.seconds.items():
            self._load_seconds.labels(self._model, phase.value).set(seconds)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", documentation, ["model"], registry=self._registry).labels(self._model)

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", documentation, ["model"], registry=self._registry).labels(self._model)

    def _total(self, name: str, documentation: str) -> EngineTotal:
        return EngineTotal(self._counter(name, documentation))

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", documentation, ["model"], registry=self._registry, buckets=buckets).labels(
            self._model
        )
