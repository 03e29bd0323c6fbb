"""etcd, the API server and the controller manager as child processes: a real control plane in seconds, without root.

Certificates and the key that signs service account tokens are the API server's own self-signed ones.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from multimodel_testbed import access, binaries, folders
from multimodel_testbed.processes import Processes

SERVICE_NETWORK = "10.96.0.0/16"
START_SECONDS = 120.0
DEFINED_SECONDS = 30
FOLDER_PREFIX = "multimodel-control-plane-"
QUICK_CONTROLLERS = 200
DEFAULT_CONTROLLERS = 20
"""As the controller manager does it without being told."""

USERS: Mapping[str, tuple[str, str]] = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", "system:masters"),
}


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane, and how to talk to it as administrator."""

    folder: Path
    url: str
    users: Mapping[str, access.User]
    controller_rate: int
    """Requests a second that each controller of the controller manager may make."""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig file."""
        return self.kubeconfig_of("admin")

    @property
    def ca_file(self) -> Path:
        """The certificates to trust; the API server makes them at its first start."""
        return self.folder / "certificates" / "apiserver.crt"

    @property
    def signing_key(self) -> Path:
        """The key that signs service account tokens."""
        return self.folder / "certificates" / "apiserver.key"

    def has_certificate(self) -> bool:
        """Tell whether the API server has made, and wholly written, what `ca_file` holds."""
        return self.ca_file.exists() and self.ca_file.read_text().rstrip().endswith("-----END CERTIFICATE-----")

    def kubeconfig_of(self, role: str) -> Path:
        """Return the kubeconfig file of one of `users`."""
        return self.folder / f"{role}.kubeconfig"

    def api(self) -> access.ApiServer:
        """Return a client with the administrator's rights; close it after use."""
        return access.ApiServer(self.url, self.ca_file, self.users["admin"])

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it prints; raises CalledProcessError with its words."""
        return run_kubectl(self.kubeconfig, *arguments, stdin=stdin)

    def define(self, crd: Path) -> None:
        """Apply a CustomResourceDefinition and wait until its objects can be made; raises CalledProcessError."""
        self.kubectl("apply", "--server-side", f"--filename={crd}")
        until = time.monotonic() + DEFINED_SECONDS
        while "conditions" not in self.kubectl("get", f"--filename={crd}", "--output=jsonpath={.status}"):
            if time.monotonic() > until:  # `kubectl wait` fails at once where there are no conditions yet
                raise TimeoutError(f"{crd.name} is not looked at")
            time.sleep(0.1)
        self.kubectl("wait", "--for=condition=Established", f"--filename={crd}", f"--timeout={DEFINED_SECONDS}s")


class KubectlError(subprocess.CalledProcessError):
    """kubectl ended with an error; its words are part of the message."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stderr}"


def run_kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it prints; raises KubectlError."""
    command = [str(binaries.ensure("kubectl")), f"--kubeconfig={kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubectlError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def control_plane(controller_rate: int = QUICK_CONTROLLERS) -> Iterator[ControlPlane]:
    """Run a control plane on loopback for the length of the block; nothing of it stays behind.

    `controller_rate` is how many requests a second each controller may make.

    Enter it from a thread that outlives the block (the main one): Linux ends the processes with the thread.
    Raises MissingBinaryError, or StartError with the end of the logs.
    """
    programs = binaries.ensure_all(binaries.CONTROL_PLANE_PROGRAMS)
    with _own_folder() as folder:
        processes = Processes(folder / "logs")
        try:
            address = "127.0.0.1", _free_port()
            yield launch(processes, programs, folder, *address, USERS, controller_rate=controller_rate)
        finally:
            processes.stop()


def launch(
    processes: Processes,
    programs: Mapping[str, Path],
    folder: Path,
    address: str,
    port: int,
    users: Mapping[str, tuple[str, str]],
    *api_server_options: str,
    controller_rate: int = QUICK_CONTROLLERS,
) -> ControlPlane:
    """Start the control plane's processes and wait until namespaces hold what pods need.

    `users` maps a role (it names the kubeconfig file) to a user's name and group.
    """
    known = {role: access.make_user(*who) for role, who in users.items()}
    plane = ControlPlane(folder, f"https://{address}:{port}", known, controller_rate)
    access.write_token_file(folder / "tokens.csv", plane.users)
    for role, user in plane.users.items():
        access.write_kubeconfig(plane.kubeconfig_of(role), plane.url, plane.ca_file, user)
    _start_etcd(processes, programs["etcd"], folder)
    _start_api_server(processes, programs["kube-apiserver"], plane, address, port, *api_server_options)
    processes.wait_until("the API server has made its certificate", plane.has_certificate, START_SECONDS)
    with closing(plane.api()) as api:
        processes.wait_until("the API server is ready", lambda: api.exists("/readyz"), START_SECONDS)
        start_controller_manager(processes, plane, plane.kubeconfig_of("kube-controller-manager"))
        for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
            what = f"the controller manager has made {path} in namespace default"
            processes.wait_until(what, lambda p=path: api.exists(f"/api/v1/namespaces/default/{p}"), START_SECONDS)  # type: ignore[misc]
    return plane


def _etcd_url(folder: Path) -> str:
    return f"unix://{folder}/etcd.sock"  # a socket, so that neither ports nor other users get in the way


def _start_etcd(processes: Processes, program: Path, folder: Path) -> None:
    options = [
        "--name=multimodel",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={_etcd_url(folder)}",
        f"--advertise-client-urls={_etcd_url(folder)}",
        f"--listen-peer-urls=unix://{folder}/etcd-peer.sock",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=multimodel=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    processes.start("etcd", [program, *options])


def _start_api_server(
    processes: Processes, program: Path, plane: ControlPlane, address: str, port: int, *more: str
) -> None:
    options = [
        f"--etcd-servers={_etcd_url(plane.folder)}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--cert-dir={plane.ca_file.parent}",
        f"--token-auth-file={plane.folder}/tokens.csv",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={plane.signing_key}",
        f"--service-account-signing-key-file={plane.signing_key}",
        "--authorization-mode=Node,RBAC",
        "--endpoint-reconciler-type=none",
        "--allow-privileged=true",
        "--profiling=false",
    ]
    processes.start("kube-apiserver", [program, *options, *more])


def start_controller_manager(processes: Processes, plane: ControlPlane, kubeconfig: Path) -> None:
    """Start the controllers, which reach the API server as `kubeconfig` says."""
    options = [
        f"--kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={plane.signing_key}",
        f"--root-ca-file={plane.ca_file}",
        "--leader-elect=false",
        "--secure-port=0",
        f"--kube-api-qps={plane.controller_rate}",
        f"--kube-api-burst={2 * plane.controller_rate}",
    ]
    processes.start("kube-controller-manager", [binaries.ensure("kube-controller-manager"), *options])


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Make a folder for one run, and clear away those whose run was killed."""
    temporary = Path(tempfile.gettempdir())
    with ExitStack() as held:
        with folders.exclusive(folders.cache_root() / "control-plane.lock"):
            for leftover in temporary.glob(f"{FOLDER_PREFIX}*"):
                _remove_if_abandoned(leftover)
            folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
            held.enter_context(folders.exclusive(folder / "in-use.lock"))
        held.callback(shutil.rmtree, folder)
        yield folder


def _remove_if_abandoned(folder: Path) -> None:
    if folder.stat().st_uid == os.getuid():
        with folders.exclusive_or_refused(folder / "in-use.lock") as abandoned:
            if abandoned:
                shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
