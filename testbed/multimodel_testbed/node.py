"""A whole Kubernetes node as plain processes: control plane, scheduler, containerd, kubelet and kube-proxy.

Needs root and a few Debian packages (`host.NODE_NEEDS`). One per machine: the bridge, its addresses and the run folder
are fixed. Cluster DNS is left out; Services are reached by their addresses.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from multimodel_testbed import binaries, folders, host, leftovers, node_config, oci
from multimodel_testbed.access import ApiServer
from multimodel_testbed.containerd import Containerd
from multimodel_testbed.control_plane import USERS, ControlPlane, launch
from multimodel_testbed.errors import TestbedError
from multimodel_testbed.leftovers import RUN
from multimodel_testbed.processes import Child, Processes

START_SECONDS = 120.0
LOCK = Path("/run") / f"{RUN.name}.lock"
NODE_PATH = f"/api/v1/nodes/{node_config.NODE_NAME}"

NODE_USERS: Mapping[str, tuple[str, str]] = {
    **USERS,
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{node_config.NODE_NAME}", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
}


@dataclass(frozen=True)
class Node:
    """A running node with its control plane; images imported into `containerd` can run."""

    plane: ControlPlane
    containerd: Containerd
    processes: Processes

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig file."""
        return self.plane.kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it prints."""
        return self.plane.kubectl(*arguments, stdin=stdin)

    def set_devices(self, resource: str, count: int) -> None:
        """Let the node claim to have devices, as `nvidia.com/gpu`, which no device plugin looks after."""
        claimed = {resource: str(count)}
        patch = json.dumps({"status": {"capacity": claimed, "allocatable": claimed}})
        self.kubectl("patch", "node", node_config.NODE_NAME, "--subresource=status", "--type=merge", f"--patch={patch}")

    def helm(self, *arguments: str) -> str:
        """Run helm against this cluster and return what it prints; raises TestbedError with its words."""
        command = [str(binaries.ensure("helm")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TestbedError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


@contextmanager
def node() -> Iterator[Node]:
    """Run a whole node for the length of the block; what a crashed run left is cleared away first.

    Raises TestbedError where another node runs, root or a package is missing, or a program does not start.
    """
    host.require_root()
    host.require_programs(host.NODE_NEEDS)
    programs = binaries.ensure_all(binaries.ALL_PROGRAMS)
    with only_node_here(), ExitStack() as undo:
        leftovers.require_no_other_kubelet()
        leftovers.sweep()
        RUN.mkdir(mode=0o755)
        undo.callback(leftovers.sweep)
        processes = Processes(RUN / "logs")
        undo.callback(processes.stop)
        yield _start(processes, programs)


@contextmanager
def only_node_here() -> Iterator[None]:
    """Hold the machine's one place for a node; raises TestbedError where it is taken."""
    with folders.exclusive_or_refused(LOCK) as mine:
        if not mine:
            raise TestbedError("a node runs on this machine already; end it: python -m multimodel_testbed down")
        yield


def _start(processes: Processes, programs: Mapping[str, Path]) -> Node:
    _make_bridge()
    client_certificate, client_key = _make_kubelet_client_certificate(RUN)
    plane = launch(
        processes,
        programs,
        RUN,
        node_config.NODE_ADDRESS,
        node_config.API_PORT,
        NODE_USERS,
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={client_certificate}",
        f"--kubelet-client-key={client_key}",
    )
    containerd = _start_containerd(processes, programs)
    _import_pause_image(containerd, programs["pause"])
    _start_kubelet(processes, programs["kubelet"], plane, client_certificate)
    _start_kube_proxy(processes, programs["kube-proxy"], plane)
    scheduler_kubeconfig = plane.kubeconfig_of("kube-scheduler")
    scheduler = [f"--kubeconfig={scheduler_kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    processes.start("kube-scheduler", [programs["kube-scheduler"], *scheduler])
    with closing(plane.api()) as api:
        api.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", node_config.api_server_endpoints())
        processes.wait_until("the node is ready", partial(_is_schedulable, api), START_SECONDS)
    return Node(plane, containerd, processes)


def _is_schedulable(api: ApiServer) -> bool:
    if not api.exists(NODE_PATH):
        return False
    found = api.get(NODE_PATH)
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", []))
    return ready and not found["spec"].get("taints")


def _make_bridge() -> None:
    leftovers.FORMER_IP_FORWARD.write_text(leftovers.IP_FORWARD.read_text())
    leftovers.IP_FORWARD.write_text("1")
    subprocess.run(["ip", "link", "add", node_config.BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", f"{node_config.NODE_ADDRESS}/24", "dev", node_config.BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", node_config.BRIDGE, "up"], check=True)


def _make_kubelet_client_certificate(folder: Path) -> tuple[Path, Path]:
    """Make the certificate by which the kubelet knows the API server; it is its own authority."""
    certificate, key = folder / "kubelet-client.crt", folder / "kubelet-client.key"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365"]
    subject = ["-subj", "/O=system:masters/CN=kube-apiserver-kubelet-client", "-addext", "extendedKeyUsage=clientAuth"]
    command = ["openssl", "req", *options, *subject, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def _start_containerd(processes: Processes, programs: Mapping[str, Path]) -> Containerd:
    config, root = RUN / "containerd.toml", folders.cache_root() / "containerd" / binaries.CONTAINERD.version
    config.write_text(node_config.containerd_toml(root, RUN, programs["containerd-shim-runc-v2"], host.CNI_PLUGINS))
    _write_json(RUN / "cni" / "10-multimodel.conflist", node_config.cni_conflist(RUN))
    containerd = Containerd(programs["ctr"], RUN / "containerd.sock")

    def start() -> Child:
        child = processes.start("containerd", [programs["containerd"], f"--config={config}"])
        processes.wait_until("containerd answers", containerd.answers, START_SECONDS)
        return child

    first = start()
    if containerd.forget_containers():  # its root outlives runs; what it had loaded of the last one must go too
        processes.stop_one(first)
        start()
    return containerd


def _import_pause_image(containerd: Containerd, program: Path) -> None:
    name = node_config.PAUSE_IMAGE
    manifest, (config, layer) = oci.single_program_image(program)
    if not containerd.has_image(name, config.digest):
        write = partial(oci.write_archive, name, manifest, (config, layer))
        containerd.import_image(name, config.digest, write)


def _start_kubelet(processes: Processes, program: Path, plane: ControlPlane, client_certificate: Path) -> None:
    config = _write_json(RUN / "kubelet.json", node_config.kubelet(RUN, client_certificate))
    options = [
        f"--config={config}",
        f"--kubeconfig={plane.kubeconfig_of('kubelet')}",
        f"--hostname-override={node_config.NODE_NAME}",
        f"--node-ip={node_config.NODE_ADDRESS}",
        f"--root-dir={RUN}/kubelet",
        f"--cert-dir={RUN}/kubelet-certificates",
    ]
    processes.start("kubelet", [program, *options])


def _start_kube_proxy(processes: Processes, program: Path, plane: ControlPlane) -> None:
    config = _write_json(RUN / "kube-proxy.json", node_config.kube_proxy(plane.kubeconfig_of("kube-proxy")))
    processes.start("kube-proxy", [program, f"--config={config}"])


def _write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path
