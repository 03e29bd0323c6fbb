"""Which layers of a model see a window of the text only, as its configuration file says it."""

from collections.abc import Callable

from multimodel_server.models.fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(fields: Fields, layers: int, slides: Callable[[int], bool]) -> tuple[str, ...]:
    """Return each layer's type; in a file without `layer_types`, `slides` tells it of a layer's number."""
    if fields.values.get("layer_types") is None:
        return tuple(SLIDING if slides(number) else FULL for number in range(layers))
    return fields.choices("layer_types", (FULL, SLIDING), layers)


def windows_of(types: tuple[str, ...], fields: Fields) -> tuple[int | None, ...]:
    """Return each layer's window, `sliding_window`, or None where it sees the whole text."""
    if SLIDING not in types:
        return (None,) * len(types)
    window = fields.count("sliding_window")
    return tuple(window if kind == SLIDING else None for kind in types)


def late_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window where only layers from `max_window_layers` on have one, and only if enabled."""
    if not fields.flag("use_sliding_window"):
        return (None,) * layers
    first = fields.index("max_window_layers", default=28)
    return windows_of(layer_types(fields, layers, lambda number: number >= first), fields)
