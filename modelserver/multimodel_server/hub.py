"""Where a model's files are: in a folder, or in a repository of the Hugging Face Hub that is downloaded once.

Only safetensors, JSON and Jinja files of the repository's top folder are fetched: nothing that could hold code.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError

logger = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Told the bytes done and the bytes known, from any thread."""

WANTED_FILES = ["*.safetensors", "*.json", "*.jinja"]
UNWANTED_FILES = ["*/*", "consolidated*.safetensors"]
"""Subfolders, and the second copy of the weights that some repositories hold for other programs."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LOG_SECONDS = 5.0
_METADATA_SECONDS = 10.0


def is_hub_id(model: str) -> bool:
    """Say whether `model` can only be a Hub repository: it has the form `org/name` and is no folder here."""
    return not Path(model).expanduser().exists() and _HUB_ID.fullmatch(model) is not None


def local_folder(model: str) -> Path:
    """Return the folder that `model` names; raises `LoadError`."""
    path = Path(model).expanduser()
    if not path.exists():
        raise LoadError(
            FailureReason.MODEL_NOT_FOUND,
            f"'{model}' is neither a folder (looked for {path.absolute()}, working directory {Path.cwd()}) "
            "nor a Hub id of the form org/name.",
        )
    if not path.is_dir():
        raise LoadError(FailureReason.MODEL_NOT_FOUND, f"{path.absolute()} is a file; give the folder that holds it.")
    if not (path / "config.json").is_file():
        raise LoadError(FailureReason.MODEL_NOT_FOUND, f"The folder {path.absolute()} holds no config.json.")
    return path.absolute()


def download(model: str, *, revision: str | None, cache_dir: Path | None, offline: bool, report: Report) -> Path:
    """Return the folder of a Hub repository's files, fetching those that the cache lacks; raises `LoadError`."""
    cache = cache_dir or Path(constants.HF_HUB_CACHE)
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        if not offline:
            _check_space(model, cache, _missing_bytes(model, revision, cache))
        folder = snapshot_download(
            model,
            revision=revision,
            cache_dir=cache,
            local_files_only=offline,
            allow_patterns=WANTED_FILES,
            ignore_patterns=UNWANTED_FILES,
            tqdm_class=_bar_class(model, report),
        )
    except (httpx2.HTTPError, OSError) as error:
        raise _explained(error, model, revision, cache, offline=offline) from error
    if not (Path(folder) / "config.json").is_file():
        raise LoadError(FailureReason.HUB_NOT_FOUND, f"The Hub repository {model} holds no config.json.")
    return Path(folder)


def _missing_bytes(model: str, revision: str | None, cache: Path) -> int:
    """Return how many bytes are still to be fetched; 0 when the Hub gives no answer (then the cache may do)."""
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=_METADATA_SECONDS)
    except httpx2.HTTPError as error:
        logger.warning("The Hub gives no list of %s's files: %s", model, str(error).split("\n")[0])
        return 0
    return sum(
        file.size or 0
        for file in info.siblings or []
        if _is_wanted(file.rfilename)
        and not isinstance(try_to_load_from_cache(model, file.rfilename, cache_dir=cache, revision=info.sha), str)
    )


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WANTED_FILES) and not any(
        fnmatch(name, pattern) for pattern in UNWANTED_FILES
    )


def _check_space(model: str, cache: Path, needed: int) -> None:
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LoadError(
            FailureReason.DISK_FULL,
            f"{model} needs {_size(needed)} in {cache}, where {_size(free)} are free; free some, or choose another "
            "place with --cache-dir.",
        )


def _explained(error: Exception, model: str, revision: str | None, cache: Path, *, offline: bool) -> LoadError:
    """Return the typed failure for an error of the Hub's library."""
    at = f"{model}, revision {revision or 'main'}"
    if isinstance(error, RevisionNotFoundError):
        return LoadError(FailureReason.HUB_NOT_FOUND, f"The Hub repository {model} has no revision '{revision}'.")
    if isinstance(error.__cause__, HfHubHTTPError):
        return _answered(error.__cause__, model)
    if isinstance(error, LocalEntryNotFoundError):
        why = "offline mode is on" if offline else f"the Hub at {constants.ENDPOINT} cannot be reached"
        return LoadError(
            FailureReason.HUB_UNREACHABLE,
            f"{at}: {why}, the cache {cache} does not hold it all, and there is no folder {Path(model).absolute()}.",
        )
    if isinstance(error, HfHubHTTPError):
        return _answered(error, model)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LoadError(FailureReason.DISK_FULL, f"No space left in {cache} while downloading {model}.")
    if isinstance(error, OSError):
        return LoadError(FailureReason.BAD_CONFIGURATION, f"{at} cannot be kept in {cache}: {error}.")
    return LoadError(FailureReason.HUB_UNREACHABLE, f"{at}: the download from {constants.ENDPOINT} broke off: {error}.")


def _answered(error: HfHubHTTPError, model: str) -> LoadError:
    """Return the failure for an error status of the Hub."""
    status = error.response.status_code
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if isinstance(error, GatedRepoError) or status == 403:
        return LoadError(
            FailureReason.HUB_UNAUTHORIZED,
            f"The Hub repository {model} is gated; accept its terms and give a token that may read it ({token}).",
        )
    # The Hub answers 401 for a repository that does not exist as well, unless the caller is known.
    if status == 401:
        return LoadError(
            FailureReason.HUB_UNAUTHORIZED,
            f"The Hub refused {model}: it is private, misspelt, or the token is not valid ({token}).",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return LoadError(
            FailureReason.HUB_NOT_FOUND,
            f"There is no Hub repository {model} at {constants.ENDPOINT}, and no folder {Path(model).absolute()}.",
        )
    return LoadError(FailureReason.HUB_UNREACHABLE, f"The Hub at {constants.ENDPOINT} answered {status} for {model}.")


def _bar_class(model: str, report: Report) -> type[tqdm]:
    """Return a progress bar for a terminal that reports its bytes as well, and logs them where there is none."""

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The library shows three bars; this one counts the bytes that are on disk.
            self._counts_bytes = kwargs.get("name") == "huggingface_hub.snapshot_download"
            self._bytes = 0
            self._logged = time.monotonic()
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            if self._counts_bytes:
                self._bytes += int(n or 0)
                total = int(self.total or 0)
                report(self._bytes, total)
                if self.disable and time.monotonic() - self._logged >= _LOG_SECONDS:
                    self._logged = time.monotonic()
                    logger.info("Downloading %s: %s of %s", model, _size(self._bytes), _size(total))
            return super().update(n)

    return ReportingBar


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
