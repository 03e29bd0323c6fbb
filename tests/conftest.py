"""What test folders share: a real API server that knows MultiModels, and Triton without a device."""

import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from multimodel_testbed.control_plane import ControlPlane, control_plane

SECONDS = 60.0
CRD = Path(__file__).parents[1] / "crds" / "multimodel.dev_multimodels.yaml"

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, which asks for it as kernels are defined


@pytest.fixture(scope="session")
def api_server() -> Iterator[ControlPlane]:
    """A control plane without nodes, with the CRD installed; shared, so each test takes a namespace of its own."""
    with control_plane() as plane:
        plane.kubectl("apply", "--server-side", f"--filename={CRD}")
        _wait_until_served(plane)
        yield plane


def _wait_until_served(plane: ControlPlane) -> None:
    """The API server lists and explains a new kind a little later than it takes its definition."""
    deadline = time.monotonic() + SECONDS
    while not (_listed(plane) and _explained(plane)):
        if time.monotonic() > deadline:
            pytest.fail(f"the API server does not serve MultiModels: not within {SECONDS:.0f} s")


def _listed(plane: ControlPlane) -> bool:
    return "multimodels" in plane.kubectl("api-resources", "--api-group=multimodel.dev", "--output=name")


def _explained(plane: ControlPlane) -> bool:
    """`kubectl explain` reads the OpenAPI documents, which are published after, and apart from, the list of kinds."""
    return "apis/multimodel.dev/v1alpha1" in plane.kubectl("get", "--raw", "/openapi/v3")


@pytest.fixture(scope="session")
def api_client(api_server: ControlPlane) -> Iterator[httpx.Client]:
    """An HTTP client with the administrator's rights; much quicker than kubectl."""
    trust = ssl.create_default_context(cafile=api_server.ca_file)
    headers = {"Authorization": f"Bearer {api_server.users['admin'].token}"}
    with httpx.Client(base_url=api_server.url, verify=trust, headers=headers, trust_env=False, timeout=30) as client:
        yield client
