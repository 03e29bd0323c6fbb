"""What can go wrong between the operator and the API server, by what to do about it."""


class OperatorError(Exception):
    """Base of the operator's errors."""


class RefusedError(OperatorError):
    """The API server does not accept an object; retrying helps only after somebody changed something."""


class ConflictError(RefusedError):
    """The object is not, or no longer, in the state that the request is about."""


class UnavailableError(OperatorError):
    """The API server did not answer, or not now; try again later."""


class AbsentError(UnavailableError):
    """The object, its namespace, or its whole kind is not there."""


class OutdatedError(UnavailableError):
    """The object has changed since it was last seen: look again, and decide afresh."""


class NotLeadingError(OperatorError):
    """Another operator may have taken over: this one must not write any more."""
