"""Which model an id means; pure."""

from collections.abc import Callable

from multimodel_api import errors, names
from multimodel_api.manifest import Model, MultiModelSpec


class Catalog:
    """The models of a spec by every id that a client may use; empty without a spec."""

    def __init__(self, spec: MultiModelSpec | None = None) -> None:
        self.models: tuple[Model, ...] = tuple(spec.models) if spec else ()
        self.default: Model | None = spec.default if spec else None
        self._by_id = _canonical_ids(self.models) | {model.api_id: model for model in self.models}

    def find(self, model_id: str | None) -> Model | None:
        """Return the model that `model_id` means, if any; `default` and None mean the default model."""
        if model_id is None or model_id == names.DEFAULT_MODEL_ID:
            return self.default
        return self._by_id.get(model_id)

    def resolve(self, model_id: str | None, visible: Callable[[Model], bool] = lambda _: True) -> Model:
        """Return the model that `model_id` means.

        Raises:
            ApiError: the 404 that names the ids of the visible models.
        """
        model = self.find(model_id)
        if model is None:
            known = [model.api_id for model in self.models if visible(model)]
            raise errors.model_not_found(model_id or names.DEFAULT_MODEL_ID, known)
        return model


def _canonical_ids(models: tuple[Model, ...]) -> dict[str, Model]:
    """Return models by canonical id; one that several models share names none of them."""
    canonical_ids = [model.canonical_id for model in models]
    return {model.canonical_id: model for model in models if canonical_ids.count(model.canonical_id) == 1}
