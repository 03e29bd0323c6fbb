"""HTTPS, and a certificate that is renewed while the router serves."""

import asyncio
import os
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from multimodel_router import certificate
from multimodel_router.certificate import Certificate
from multimodel_router.settings import TlsSettings

Start = Callable[..., Awaitable[Any]]


def write_certificate(folder: Path, name: str) -> TlsSettings:
    tls = TlsSettings(folder / "tls.crt", folder / "tls.key")
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(tls.key), "-out", str(tls.certificate)]
    subprocess.run(["openssl", "req", "-x509", *made, *subject, *files], check=True, capture_output=True)
    later = time.time() + len(name)
    os.utime(tls.certificate, (later, later))
    return tls


async def shown(url: str) -> bytes:
    """Return the certificate that a client is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = url.removeprefix("https://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


def written(tls: TlsSettings) -> bytes:
    return ssl.PEM_cert_to_DER_cert(tls.certificate.read_text())


async def test_a_renewed_certificate_is_shown_without_a_restart(
    start_on_processes: Start, tmp_path: Path, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.05)
    tls = write_certificate(tmp_path, "first")
    router = await start_on_processes([{"name": "abacus", "alias": "math"}], settings={"tls": tls})
    assert router.url.startswith("https://")
    assert await shown(router.url) == written(tls)
    verified = ssl.create_default_context(cafile=tls.certificate)
    async with httpx.AsyncClient(verify=verified, trust_env=False) as client:
        assert (await client.get(f"{router.url}/v1/models")).json()["data"][1]["id"] == "math"

    write_certificate(tmp_path, "second")
    second = written(tls)
    await until(lambda: shown(router.url), second)
    tls.certificate.write_text("no certificate")
    os.utime(tls.certificate, (1, 1))
    await asyncio.sleep(0.2)
    assert await shown(router.url) == second


def test_a_key_of_another_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = (write_certificate(tmp_path / name, name) for name in ("one", "other"))
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        Certificate(TlsSettings(one.certificate, other.key))
