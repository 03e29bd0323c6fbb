"""What a model server says of itself at `names.READY_PATH`, so that nobody takes another one at its address for it."""

from functools import lru_cache
from urllib.parse import quote

from multimodel_api.progress import LoadProgress

MODEL_HEADER = "x-multimodel-model"
"""On every answer of an inference route: which model made it, as `model_header` writes it."""


class Readiness(LoadProgress):
    """How far the load is, and which server this is."""

    model: str
    """The API id."""
    canonical_id: str
    boot: str
    """Drawn anew by each process: another value is another server."""


@lru_cache
def model_header(api_id: str) -> str:
    """Return an API id as a header may hold it: percent-encoded."""
    return quote(api_id, safe="")
