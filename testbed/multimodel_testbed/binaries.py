"""Finds the cluster's binaries: those of `KUBEBUILDER_ASSETS`, else the cache, else a pinned Go build into the cache.

The versions are pinned by `testbed/go/<component>/go.mod`; `COMPONENTS` says how each is compiled.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from multimodel_testbed import errors, folders
from multimodel_testbed.progress import Progress

GO_MODULES = Path(__file__).resolve().parent.parent / "go"
OLDEST_GO = (1, 26)


@dataclass(frozen=True)
class Component:
    """Programs built from one Go module.

    `programs` maps a program's name to its Go package; `stamp` names the linker variables that hold the version.
    """

    name: str
    version: str
    programs: Mapping[str, str]
    stamp: Mapping[str, str] = field(default_factory=dict)
    tags: str = ""

    @property
    def folder(self) -> Path:
        """Where the built programs of this version are cached."""
        return folders.cache_root() / "bin" / f"{self.name}-{self.version}"


ETCD = Component("etcd", "v3.7.3", {"etcd": "go.etcd.io/etcd/server/v3"})
KUBERNETES = Component(
    "kubernetes",
    "v1.36.3",
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kubectl",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
        )
    },
    stamp={
        "k8s.io/component-base/version.gitVersion": "v1.36.3",
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": "36",
        "k8s.io/client-go/pkg/version.gitVersion": "v1.36.3",
    },
)
CONTAINERD = Component(
    "containerd",
    "v2.4.2",
    {
        name: f"github.com/containerd/containerd/v2/cmd/{name}"
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    },
    stamp={"github.com/containerd/containerd/v2/version.Version": "v2.4.2"},
    tags="no_btrfs,no_devmapper,no_zfs",
)
HELM = Component("helm", "v4.3.1", {"helm": "helm.sh/helm/v4/cmd/helm"})
KUBECONFORM = Component("kubeconform", "v0.8.0", {"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"})
PAUSE = Component("pause", "v1", {"pause": "multimodel.dev/testbed/pause"})

COMPONENTS = (ETCD, KUBERNETES, CONTAINERD, HELM, KUBECONFORM, PAUSE)
OWNERS = {program: component for component in COMPONENTS for program in component.programs}

CONTROL_PLANE_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
ALL_PROGRAMS = (*CONTROL_PLANE_PROGRAMS, *(name for name in OWNERS if name not in CONTROL_PLANE_PROGRAMS))


def locate(program: str) -> Path | None:
    """Return where `program` is already: in `KUBEBUILDER_ASSETS` if set, else in the cache; None where in neither."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [Path(given) / program] if given else []
    candidates.append(OWNERS[program].folder / program)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def ensure(program: str) -> Path:
    """Return the path of `program`, building it first where it must be (minutes; shows progress).

    Raises MissingBinaryError where it can be neither found nor built.
    """
    found = locate(program)
    if found:
        return found
    component = OWNERS[program]
    with folders.exclusive(component.folder.with_name(f"{component.folder.name}.lock")):
        return locate(program) or _build(component, program)


def ensure_all(programs: Iterable[str]) -> dict[str, Path]:
    """Return the path of each program by name, building those that are missing one after the other."""
    return {program: ensure(program) for program in programs}


def _build(component: Component, program: str) -> Path:
    go = _go_command(program)
    target = component.folder / program
    component.folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{program}.unfinished")
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in component.stamp.items())])
    command = [go, "build", "-trimpath", "-tags", component.tags, "-ldflags", flags]
    command += ["-o", str(unfinished), component.programs[program]]
    log = component.folder / f"{program}.log"
    with Progress(f"building {program} {component.version} with Go") as progress, log.open("wb") as output:
        build = subprocess.Popen(
            command,
            cwd=GO_MODULES / component.name,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        progress.follow(build)
        if build.returncode:
            raise errors.MissingBinaryError(
                f"Go could not build {program}; the end of {log}:\n{log.read_text()[-2000:]}"
            )
    unfinished.rename(target)
    log.unlink()
    return target


def _go_command(program: str) -> str:
    wanted = ".".join(str(part) for part in OLDEST_GO)
    ways = (
        f"Install Go {wanted} or newer (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder that holds "
        f"{program}, or copy a filled cache to {folders.cache_root()} (another place: set MULTIMODEL_CACHE)."
    )
    go = shutil.which("go")
    if go is None:
        raise errors.MissingBinaryError(f"{program} is not built yet and there is no Go to build it. {ways}")
    printed = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    version = re.match(r"go(\d+)\.(\d+)", printed)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_GO:
        raise errors.MissingBinaryError(f"{program} is not built yet and the Go here is {printed}, too old. {ways}")
    return go
