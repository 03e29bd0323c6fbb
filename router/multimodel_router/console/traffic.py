"""What the router's metrics say of each model's requests; pure.

The counts are totals since the router started: the page makes rates and quantiles of two of them.
"""

from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import Metric
from pydantic import BaseModel


class Traffic(BaseModel):
    """The requests of one model; `first_byte` counts those at or below each number of seconds, up to `+Inf`."""

    requests: dict[str, int] = {}
    in_flight: int = 0
    waiting: int = 0
    first_byte: dict[str, int] = {}


def read_traffic(families: Iterable[Metric]) -> dict[str, Traffic]:
    """Return the traffic of each model that has had any, by the model's name."""
    found: defaultdict[str, Traffic] = defaultdict(Traffic)
    for family in families:
        for sample in family.samples:
            model, value = sample.labels.get("model", ""), int(sample.value)
            match sample.name:
                case "multimodel_router_requests_total":
                    found[model].requests[sample.labels["status"]] = value
                case "multimodel_router_first_byte_seconds_bucket":
                    found[model].first_byte[sample.labels["le"]] = value
                case "multimodel_router_requests_in_flight":
                    found[model].in_flight = value
                case "multimodel_router_requests_waiting":
                    found[model].waiting = value
    return dict(found)
