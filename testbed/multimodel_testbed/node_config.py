"""The configuration files of the node's programs, as plain documents (pure: nothing here touches the machine)."""

from pathlib import Path
from typing import Any

NODE_NAME = "multimodel"
BRIDGE = "mm0"
NODE_ADDRESS = "10.88.0.1"
POD_NETWORK = "10.88.0.0/24"
API_PORT = 6443
POD_NETWORK_NAME = "multimodel-testbed"
PAUSE_IMAGE = "multimodel.dev/testbed/pause:v1"


def containerd_toml(root: Path, run: Path, shim: Path, cni_plugins: Path) -> str:
    """Return containerd's configuration: layers in `root` outlive the run, all else is in `run`."""
    return f"""\
version = 3
root = "{root}"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = "{run}/containerd.sock"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
# A machine without CAP_SYS_RESOURCE may not lower scores; runc would die without a word of why.
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni_plugins}"]
conf_dir = "{run}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{shim}"
"""


def cni_conflist(run: Path) -> dict[str, Any]:
    """Return the pod network: a bridge, with addresses leased from files in `run`."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{run}/cni-leases",
            "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.88.0.2"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": POD_NETWORK_NAME, "plugins": [bridge, {"type": "loopback"}]}


def kubelet(run: Path, client_certificate: Path) -> dict[str, Any]:
    """Return the kubelet's configuration; the API server shows `client_certificate` for exec and logs."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(client_certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{run}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "podLogsDir": f"{run}/pod-logs",
        "volumePluginDir": f"{run}/volume-plugins",
        # Images are imported, not pulled: nothing brings back what the garbage collector takes.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }


def kube_proxy(kubeconfig: Path) -> dict[str, Any]:
    """Return kube-proxy's configuration; all Service traffic is masqueraded, so that replies pass the node again."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE_NAME,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "nftables": {"masqueradeAll": True, "minSyncPeriod": "100ms"},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": "",
        "metricsBindAddress": "",
        "nodePortAddresses": [POD_NETWORK],
    }


def api_server_endpoints() -> dict[str, Any]:
    """Return the EndpointSlice by which pods reach the API server at the Service `default/kubernetes`."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "https", "protocol": "TCP", "port": API_PORT}],
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
    }
