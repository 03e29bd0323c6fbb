"""How kopf finds the API server from inside a pod."""

import kopf
import pytest

from multimodel_operator.handlers import by_address


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_a_pod_needs_no_cluster_dns(host: str, server: str) -> None:
    given = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    found = by_address(given, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"})
    assert (found.server, found.token) == (server, "t")
