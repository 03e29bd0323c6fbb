"""What a waiting client hears."""

import pytest

from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_router.comfort import describe
from multimodel_router.fleet import Endpoint, ModelView

MODEL: Model = MultiModelSpec.model_validate(
    {"models": [{"name": "m", "alias": "a/b", "plain": {"modelId": "x"}}]}
).models[0]


def loading(phase: LoadPhase, done: int = 0, total: int = 0) -> ModelView:
    return ModelView(desired=1, progress=LoadProgress(phase=phase, bytes_done=done, bytes_total=total))


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (ModelView(desired=0), "loading a/b: starting"),
        (ModelView(desired=1, waits_for="scheduling"), "loading a/b: scheduling"),
        (ModelView(desired=1, waits_for="pulling the image"), "loading a/b: pulling the image"),
        (loading(LoadPhase.DOWNLOADING), "loading a/b: downloading"),
        (
            loading(LoadPhase.READING_WEIGHTS, 12_340_000_000, 15_000_000_000),
            "loading a/b: reading weights, 12.3 of 15.0 GB",
        ),
        (loading(LoadPhase.WARMING_UP), "loading a/b: warming up"),
        (loading(LoadPhase.READY), "loading a/b: almost ready"),
        (loading(LoadPhase.FAILED), "loading a/b: failed"),
        (ModelView(desired=1, ready=(Endpoint("192.0.2.1", 1),)), "a/b is ready"),
    ],
    ids=str,
)
def test_a_load_is_told_in_one_line(view: ModelView, words: str) -> None:
    assert describe(MODEL, view) == words
