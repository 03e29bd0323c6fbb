"""Errors in OpenAI's shape, raised by the router and the model server alike."""

from collections.abc import Iterable
from http import HTTPStatus

from pydantic import BaseModel, ValidationError

from multimodel_api.failures import LoadFailure


class ErrorDetail(BaseModel):
    """The inside of OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that a client sees: an HTTP status and OpenAI's error object."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002  (OpenAI's name of the field)
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self.retry_after = retry_after

    @property
    def body(self) -> ErrorBody:
        """The JSON document to answer with."""
        return ErrorBody(error=self.detail)

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error: `retry-after`, in seconds, and the challenge of a 401."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"www-authenticate": "Bearer"} if self.status is HTTPStatus.UNAUTHORIZED else {})


def invalid_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the 400 for a request that is wrong in itself."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def from_validation(error: ValidationError) -> ApiError:
    """Return the 400 that names the first wrong field of a request body, its value and what was expected."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = _parameter(first["loc"])
    if first["type"] == "json_invalid":
        return invalid_request(f"The request body is not valid JSON: {first['msg']}.")
    given = "" if first["type"] == "missing" else f" (got {_shortened(first['input'])})"
    return invalid_request(f"{param or 'The request body'}: {first['msg']}{given}.", param=param)


def model_not_found(model_id: str, known_ids: Iterable[str]) -> ApiError:
    """Return the 404 for an id that names no model, listing those that do."""
    known = ", ".join(f"'{known_id}'" for known_id in known_ids) or "none"
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"The model '{model_id}' does not exist. Known models: {known}.",
        param="model",
        code="model_not_found",
    )


def invalid_api_key(message: str) -> ApiError:
    """Return the 401 for a request without a key, or with one that is not known."""
    return ApiError(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")


def insufficient_permissions(key_name: str, action: str, model_id: str | None) -> ApiError:
    """Return the 403 for a key that may not do this, or not with this model."""
    object_ = f" with the model '{model_id}'" if model_id else ""
    return ApiError(
        HTTPStatus.FORBIDDEN,
        f"The API key '{key_name}' may not {action}{object_}. Use another key, or have this one's entry changed.",
        param="model" if model_id else None,
        code="insufficient_permissions",
    )


def load_failed(model_id: str, failure: LoadFailure) -> ApiError:
    """Return the 503 for a request whose model cannot be loaded; the code is the typed reason."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The model '{model_id}' could not be loaded. {failure}",
        type="server_error",
        param="model",
        code=failure.reason.value,
    )


def server_error(
    message: str, *, status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR, code: str | None = None
) -> ApiError:
    """Return a 5xx for a failure on our side."""
    return ApiError(status, message, type="server_error", code=code)


def _parameter(location: tuple[int | str, ...]) -> str | None:
    """Return `messages[0].role` for `("messages", 0, "role")`; None for the body itself."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or None


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
