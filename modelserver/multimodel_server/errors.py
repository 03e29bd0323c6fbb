"""What can go wrong in the model server, apart from what a client asked for (that is `multimodel_api.errors`)."""

from multimodel_api.failures import FailureReason, LoadFailure


class LoadError(Exception):
    """The model cannot be served; `failure` says why, in the words that every part uses."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.failure = LoadFailure(reason=reason, message=message)


class GenerationError(Exception):
    """A request ended without its answer."""


class RequestRefusedError(GenerationError):
    """The engine refused or dropped this one request; the others go on. `invalid` if the request itself was wrong."""

    def __init__(self, message: str, *, invalid: bool = False) -> None:
        super().__init__(message)
        self.invalid = invalid


class EngineDiedError(GenerationError):
    """The engine ended while it was answering; the tokens after the last one are lost."""


class EngineGoneError(GenerationError):
    """There is no engine any more, and there will be none."""
