"""Which web pages may call the router from a browser (the CORS protocol of the Fetch standard); pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from multimodel_router.http1.request import Headers, Request

ANY = "*"
MAX_AGE = b"600"
EXPOSED = b"x-request-id, retry-after"


@dataclass(frozen=True, slots=True)
class Cors:
    """The origins that are allowed, such as `https://chat.example.org`; none by default, `*` for all."""

    origins: Sequence[str] = ()

    def headers(self, request: Request) -> Headers:
        """Return what an answer says to the browser."""
        vary = [(b"vary", b"origin")] if self.origins and ANY not in self.origins else []
        origin = self._allowed(request)
        if origin is None:
            return vary
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), *vary]

    def preflight(self, request: Request) -> Headers | None:
        """Return the answer's headers to a browser that asks before it calls; None when this is no such question."""
        if request.method != "OPTIONS":
            return None
        method = request.header(b"access-control-request-method")
        if method is None or self._allowed(request) is None:
            return None
        wanted = request.header(b"access-control-request-headers")
        return [
            (b"access-control-allow-methods", method),
            (b"access-control-max-age", MAX_AGE),
            *([(b"access-control-allow-headers", wanted)] if wanted else []),
        ]

    def forbids(self, request: Request) -> bool:
        """Say whether a page of a foreign origin makes its visitor's browser send this, which asks nobody first.

        A plain form's POST needs no preflight: on a router without keys it could load and unload models.
        """
        site = request.header(b"sec-fetch-site")
        return request.method == "POST" and site in (b"cross-site", b"same-site") and self._allowed(request) is None

    def _allowed(self, request: Request) -> bytes | None:
        origin = request.header(b"origin")
        if origin is None:
            return None
        if ANY in self.origins:
            return ANY.encode()
        return origin if origin.decode("latin-1") in self.origins else None
