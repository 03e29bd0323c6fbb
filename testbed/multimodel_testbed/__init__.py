"""A real Kubernetes cluster on one machine, without Docker: for development and tests only.

Two sizes: `control_plane.control_plane()` (etcd, API server, controller manager; seconds, no root) and
`node.node()` (also scheduler, containerd, kubelet, kube-proxy; as root, runs real pods).
"""
