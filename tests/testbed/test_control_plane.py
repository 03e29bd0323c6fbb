import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from multimodel_testbed.control_plane import FOLDER_PREFIX, KubectlError, control_plane

pytestmark = pytest.mark.control_plane

HOLD = """
from multimodel_testbed.control_plane import control_plane
with control_plane() as plane:
    print(plane.folder, flush=True)
    input()
"""


def eventually(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(folder) in word for word in process.info["cmdline"] or [])]


@pytest.fixture(scope="module")
def plane():
    with control_plane() as running:
        yield running


def test_controller_manager_makes_a_replica_set_of_a_deployment(plane):
    plane.kubectl("create", "deployment", "example", "--image=example.invalid/none", "--replicas=2")

    def pods():
        return json.loads(plane.kubectl("get", "pods", "-l", "app=example", "-o", "json"))["items"]

    eventually(lambda: len(pods()) == 2)
    assert {owner["kind"] for pod in pods() for owner in pod["metadata"]["ownerReferences"]} == {"ReplicaSet"}


def test_service_account_tokens_are_held_to_their_rights(plane):
    token = plane.kubectl("create", "token", "default").strip()
    as_account = [f"--token={token}", "--kubeconfig=/dev/null", f"--server={plane.url}"]
    as_account.append(f"--certificate-authority={plane.ca_file}")
    assert "system:serviceaccount:default:default" in plane.kubectl("auth", "whoami", *as_account)
    with pytest.raises(KubectlError, match="Forbidden"):
        plane.kubectl("get", "pods", *as_account)


def test_secrets_of_the_cluster_are_their_owner_s_alone(plane):
    assert plane.folder.stat().st_mode & 0o077 == 0
    assert plane.kubeconfig.stat().st_mode & 0o077 == 0


def test_two_control_planes_at_once_do_not_meet(plane):
    with control_plane() as other, closing(other.api()) as api:
        other.kubectl("create", "namespace", "only-here")
        assert api.exists("/api/v1/namespaces/only-here")
        assert "only-here" not in plane.kubectl("get", "namespaces")


def test_nothing_outlives_a_killed_owner_and_the_next_run_clears_its_folder(plane):
    owner = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(owner.stdout.readline().strip())
    assert folder.name.startswith(FOLDER_PREFIX)
    assert len(processes_of(folder)) == 3
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    eventually(lambda: not processes_of(folder))
    assert folder.exists()
    with control_plane() as following:
        assert not folder.exists()
        last = following.folder
    assert not last.exists()
    assert plane.folder in Path(tempfile.gettempdir()).iterdir()
