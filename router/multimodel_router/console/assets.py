"""The console's static files and the headers that keep the page to itself."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath

from fastapi import Response

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""The page runs its own script alone, and a browser refuses any text that would become markup."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file with the headers it is served with."""

    content: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, name: str) -> "Asset":
        """Return the file `name` of this package."""
        content = resources.files(__package__).joinpath(name).read_bytes()
        headers = {
            "content-type": f"{MEDIA_TYPES[PurePath(name).suffix]}; charset=utf-8",
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        }
        return cls(content, headers | SECURITY_HEADERS)

    def response(self, if_none_match: str | None) -> Response:
        """Return the file, or 304 without it to a browser that names the ETag it has."""
        if if_none_match and self.headers["etag"] in if_none_match:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=self.headers)
        return Response(self.content, headers=self.headers)
