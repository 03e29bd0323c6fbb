"""What the whole node asks of the machine: root, and a few programs of the operating system."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from multimodel_testbed.errors import MissingPackagesError, TestbedError

CNI_PLUGINS = Path("/usr/lib/cni")

NODE_NEEDS = {
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "umount": "mount",
    "openssl": "openssl",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}
IMAGE_NEEDS = {"buildah": "buildah", "containers-storage": "containers-storage", "debootstrap": "debootstrap"}


def require_root() -> None:
    """Raise TestbedError unless this process may make bridges, mounts and containers."""
    if os.geteuid() != 0:
        raise TestbedError("the node makes a bridge, mounts and containers: run this command as root (sudo -E …)")


def require_programs(needs: dict[str, str]) -> None:
    """Raise MissingPackagesError unless every program in `needs` (program to Debian package) is there."""
    missing = sorted({package for program, package in needs.items() if shutil.which(program) is None})
    if missing:
        raise MissingPackagesError(f"programs are missing on this machine; install them: {install_command(missing)}")


def install_command(packages: Sequence[str]) -> str:
    """Return the command that installs Debian packages."""
    return f"apt-get install -y --no-install-recommends {' '.join(packages)}"
