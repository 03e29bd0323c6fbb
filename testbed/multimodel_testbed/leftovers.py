"""Removes every trace of a node from the machine: used when it stops, and at the next start after a crash."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from multimodel_testbed import binaries, node_config
from multimodel_testbed.errors import TestbedError

RUN = Path("/var/lib/multimodel-testbed")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
FORMER_IP_FORWARD = RUN / "former-ip-forward"
CGROUPS = Path("/sys/fs/cgroup")
POD_CGROUP = "kubepods"
CNI_RESULTS = Path("/var/lib/cni/results")
CONTAINER_LOG_LINKS = Path("/var/log/containers")


def require_no_other_kubelet() -> None:
    """Raise TestbedError where this machine belongs to another cluster: its pods and rules look like ours."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "kubelet" and process.info["cmdline"] and not _names_run_folder(process):
            raise TestbedError(f"this machine is a node of another cluster (kubelet is process {process.pid})")


def sweep() -> None:
    """End the node's processes and undo its mounts, network, cgroups and files; quick where there is nothing."""
    _end_processes()
    _unmount()
    _remove_cgroups()
    _remove_network()
    for link in CONTAINER_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(RUN):
            link.unlink()
    shutil.rmtree(RUN, ignore_errors=not RUN.exists())


def _end_processes() -> None:
    # Parents go first, so that nothing starts what was just ended.
    programs = list(_programs_of_run())
    containers = [child for program in programs for child in _descendants(program)]
    for process in [*programs, *containers]:
        _kill(process)
    psutil.wait_procs([*programs, *containers, *_exiting_programs()], timeout=10)
    for process in _processes_in_cgroups():
        _kill(process)


def _programs_of_run() -> Iterator[psutil.Process]:
    """Yield our programs (shims too, which outlive containerd): those with a command line that names the run folder."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if _names_run_folder(process) and Path(process.info["cmdline"][0]).name in binaries.OWNERS:
            yield process


def _exiting_programs() -> Iterator[psutil.Process]:
    """Yield programs that were killed with their parent and are not quite gone: they have lost their command line."""
    names = {program[:15] for program in binaries.OWNERS}  # as much as the kernel remembers
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        info = process.info
        if info["name"] in names and not info["cmdline"] and info["status"] != psutil.STATUS_ZOMBIE:
            yield process


def _names_run_folder(process: psutil.Process) -> bool:
    return any(str(RUN) in word for word in process.info["cmdline"] or [])


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _processes_in_cgroups() -> Iterator[psutil.Process]:
    for group in _cgroups():
        for line in (group / "cgroup.procs").read_text().split():
            if psutil.pid_exists(int(line)):
                yield psutil.Process(int(line))


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _cgroups() -> list[Path]:
    """Return the node's cgroups in every hierarchy, the innermost first."""
    roots = [CGROUPS / POD_CGROUP, *CGROUPS.glob(f"*/{POD_CGROUP}")]
    found = [Path(path) for root in roots for path, _, _ in os.walk(root)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _remove_cgroups() -> None:
    for group in _cgroups():
        group.rmdir()


def _unmount() -> None:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((p for p in points if Path(p).is_relative_to(RUN)), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=True)


def _remove_network() -> None:
    if Path(f"/sys/class/net/{node_config.BRIDGE}").exists():
        subprocess.run(["ip", "link", "delete", node_config.BRIDGE], check=True)
        for family in ("ip", "ip6"):
            table = [family, "kube-proxy"]
            if subprocess.run(["nft", "list", "table", *table], capture_output=True, check=False).returncode == 0:
                subprocess.run(["nft", "delete", "table", *table], check=True)
    if FORMER_IP_FORWARD.exists():
        IP_FORWARD.write_text(FORMER_IP_FORWARD.read_text())
    for result in CNI_RESULTS.glob(f"{node_config.POD_NETWORK_NAME}-*"):
        result.unlink()
