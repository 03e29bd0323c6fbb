"""The kinds of others of which the chart makes objects: their CRDs, from the Go modules that they are published in."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from multimodel_testbed import errors, folders


@dataclass(frozen=True)
class Source:
    """CRD files of one Go module."""

    module: str
    version: str
    files: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the files of this version are cached."""
        return folders.cache_root() / "crds" / f"{self.module.rsplit('/', 1)[1]}-{self.version}"

    @property
    def cached(self) -> list[Path]:
        """Where each file is, once it has been fetched."""
        return [self.folder / Path(file).name for file in self.files]


SOURCES = (
    Source(
        "sigs.k8s.io/gateway-api",
        "v1.4.0",
        ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    ),
    Source(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ),
    ),
)


def locate() -> list[Path] | None:
    """Return the CRD files where all are cached, else None."""
    wanted = [path for source in SOURCES for path in source.cached]
    return wanted if all(path.exists() for path in wanted) else None


def ensure() -> list[Path]:
    """Return the CRD files, fetching them first where they are not cached; raises MissingBinaryError."""
    for source in SOURCES:
        with folders.exclusive(source.folder.with_name(f"{source.folder.name}.lock")):
            if not all(path.exists() for path in source.cached):
                _fetch(source)
    return [path for source in SOURCES for path in source.cached]


def _fetch(source: Source) -> None:
    module = _download(source)
    source.folder.mkdir(parents=True, exist_ok=True)
    for file, path in zip(source.files, source.cached, strict=True):
        shutil.copyfile(module / file, path)


def _download(source: Source) -> Path:
    """Return the folder of the module, which Go checks against the checksum database."""
    go = shutil.which("go")
    if go is None:
        raise errors.MissingBinaryError(f"{source.module} is not cached in {source.folder}, and there is no Go")
    command = [go, "mod", "download", "-json", f"{source.module}@{source.version}"]
    done = subprocess.run(command, cwd=folders.cache_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise errors.MissingBinaryError(f"Go could not fetch {source.module}: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])
