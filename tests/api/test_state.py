"""The state of a model is a pure function of what the fleet shows."""

import pytest

from multimodel_api.failures import MAX_MESSAGE, FailureReason, LoadFailure
from multimodel_api.state import ModelState, model_state

FAILURE = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="model.safetensors: truncated")


@pytest.mark.parametrize(
    ("desired", "ready", "failure", "expected"),
    [
        (None, 0, None, ModelState.NO_LOADER_CONFIG),
        (0, 0, None, ModelState.UNLOADED),
        (0, 1, None, ModelState.UNLOADED),
        (0, 0, FAILURE, ModelState.UNLOADED),
        (1, 0, None, ModelState.RELOADING),
        (1, 0, FAILURE, ModelState.INTERNAL_ERROR),
        (1, 1, None, ModelState.LOADED),
        (2, 1, FAILURE, ModelState.LOADED),
    ],
)
def test_model_state(desired: int | None, ready: int, failure: LoadFailure | None, expected: ModelState) -> None:
    assert model_state(desired_replicas=desired, ready_replicas=ready, failure=failure) is expected


def test_a_failure_survives_the_termination_message() -> None:
    assert LoadFailure.parse(FAILURE.to_document()) == FAILURE


def test_a_long_failure_is_cut_to_what_kubernetes_keeps() -> None:
    long = LoadFailure(reason=FailureReason.BAD_WEIGHTS, message="x" * 10_000)
    parsed = LoadFailure.parse(long.to_document())
    assert parsed is not None
    assert len(parsed.message) == MAX_MESSAGE


@pytest.mark.parametrize("document", ["", "Segmentation fault", '{"reason": "Nonsense", "message": ""}'])
def test_another_programs_message_is_no_failure(document: str) -> None:
    assert LoadFailure.parse(document) is None
