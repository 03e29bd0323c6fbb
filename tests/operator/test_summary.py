"""One line says what the models do, and stays short."""

from multimodel_api.failures import FailureReason
from multimodel_api.state import ModelState
from multimodel_api.status import ModelStatus, WaitReason
from multimodel_operator.summary import summary


def model(name: str, state: ModelState, reason: FailureReason | WaitReason | None = None) -> ModelStatus:
    return ModelStatus(name=name, id=name, canonical_id=name, state=state, reason=reason)


def test_what_needs_a_look_comes_first() -> None:
    models = [
        model("idle", ModelState.UNLOADED),
        model("llama", ModelState.LOADED),
        model("phi", ModelState.RELOADING),
        model("next", ModelState.RELOADING, WaitReason.WAITING_FOR_PLACE),
        model("gguf", ModelState.INTERNAL_ERROR, FailureReason.OOM_KILLED),
    ]
    told = "WaitingForPlace: next; OOMKilled: gguf; reloading: phi; loaded: llama; unloaded: idle"
    assert summary(models) == told


def test_a_model_that_serves_is_loaded_though_one_of_its_replicas_fails() -> None:
    assert summary([model("a", ModelState.LOADED, FailureReason.EVICTED)]) == "loaded: a"


def test_it_stays_short() -> None:
    models = [model(f"m{number}", ModelState.LOADED) for number in range(64)]
    assert summary([*models, model("last", ModelState.UNLOADED)]) == "loaded: m0, m1, m2 +61; unloaded: last"
