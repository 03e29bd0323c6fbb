"""What can go wrong between the operator and the API server, by what to do about it."""


class OperatorError(Exception):
    """Base of the operator's errors."""


class RefusedError(OperatorError):
    """The API server does not accept an object; retrying helps only after somebody changed something."""


class UnavailableError(OperatorError):
    """The API server did not answer, or not now; try again later."""


class DefinitionMissingError(OperatorError):
    """The CustomResourceDefinition of MultiModel is not installed."""
