"""The whole node, with real pods; needs root and the packages of `multimodel_testbed.host.NODE_NEEDS`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multimodel_testbed import leftovers, node_config
from multimodel_testbed.errors import TestbedError
from multimodel_testbed.node import node

pytestmark = pytest.mark.cluster

HOLD = f"""
from multimodel_testbed.node import node
with node() as running:
    running.kubectl("run", "left", "--image={node_config.PAUSE_IMAGE}", "--restart=Never")
    running.kubectl("wait", "pod/left", "--for=condition=Ready", "--timeout=60s")
    print("ready", flush=True)
    input()
"""


def server(name: str) -> str:
    """A Deployment whose pod may do little and runs the sandbox image's program."""
    container = {
        "name": "pause",
        "image": node_config.PAUSE_IMAGE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec})


@pytest.fixture(scope="module")
def running():
    # The owner of a first node dies without a word; the second must start all the same.
    owner = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline().strip() == "ready"
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    with node() as second:
        yield second
    assert not leftovers.RUN.exists()
    assert not Path(f"/sys/class/net/{node_config.BRIDGE}").exists()
    assert str(leftovers.RUN) not in Path("/proc/self/mounts").read_text()


def test_nothing_of_the_killed_node_is_left(running):
    assert "left" not in running.kubectl("get", "pods", "--all-namespaces")
    assert running.containerd.run("containers", "list", "--quiet") == ""


def test_restricted_pod_runs_with_logs_and_exec(running):
    running.kubectl("create", "namespace", "strict")
    running.kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted")
    running.kubectl("apply", "--namespace=strict", "-f", "-", stdin=server("quiet"))
    running.kubectl("rollout", "status", "deployment/quiet", "--namespace=strict", "--timeout=60s")
    assert running.kubectl("logs", "deployment/quiet", "--namespace=strict") == "pausing\n"
    told = running.kubectl("exec", "deployment/quiet", "--namespace=strict", "--", "/pause", "version")
    assert told == "pause v1\n"


def test_a_second_node_is_refused(running):
    with pytest.raises(TestbedError, match="multimodel_testbed down"), node():
        pass
