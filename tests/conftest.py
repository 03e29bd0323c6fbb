"""What test folders share: a real API server that knows MultiModels."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from multimodel_testbed.control_plane import ControlPlane, control_plane

CRD = Path(__file__).parents[1] / "crds" / "multimodel.dev_multimodels.yaml"


@pytest.fixture(scope="session")
def api_server() -> Iterator[ControlPlane]:
    """A control plane without nodes, with the CRD installed; shared, so each test takes a namespace of its own."""
    with control_plane() as plane:
        plane.kubectl("apply", "--server-side", f"--filename={CRD}")
        plane.kubectl("wait", "--for=condition=Established", f"--filename={CRD}")
        yield plane


@pytest.fixture(scope="session")
def api_client(api_server: ControlPlane) -> Iterator[httpx.Client]:
    """An HTTP client with the administrator's rights; much quicker than kubectl."""
    trust = ssl.create_default_context(cafile=api_server.ca_file)
    headers = {"Authorization": f"Bearer {api_server.users['admin'].token}"}
    with httpx.Client(base_url=api_server.url, verify=trust, headers=headers, trust_env=False, timeout=30) as client:
        yield client
