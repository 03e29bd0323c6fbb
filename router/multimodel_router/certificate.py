"""The router's certificate: read again when it is renewed, so that no restart is needed."""

import asyncio
import logging
import os
import ssl

from multimodel_router.settings import TlsSettings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0


class Certificate:
    """A TLS context whose certificate follows its files; connections that are open keep the one they began with."""

    def __init__(self, tls: TlsSettings) -> None:
        """Raises OSError (ssl.SSLError is one) when the files cannot be read, or do not belong together."""
        self._tls = tls
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load()

    async def follow(self) -> None:
        """Look for a renewed certificate until cancelled; one that cannot be read leaves the last one standing."""
        seen = self._version()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._version() == seen:
                    continue
                seen = self._version()
                self._load()
            except OSError as error:
                logger.error("the certificate %s cannot be read, the last one stays: %s", self._tls.certificate, error)  # noqa: TRY400
            else:
                logger.info("the certificate %s was renewed", self._tls.certificate)

    def _load(self) -> None:
        self.context.load_cert_chain(self._tls.certificate, self._tls.key)

    def _version(self) -> tuple[int, int]:
        return os.stat(self._tls.certificate).st_mtime_ns, os.stat(self._tls.key).st_mtime_ns  # noqa: PTH116
