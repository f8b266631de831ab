"""Models of the Hugging Face hub, by its own client and in its cache: only needed files are fetched.

The client's errors become typed ones with a remedy, and its progress bars a number of bytes.
"""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...configs.sizes import format_size
from ...errors import EngineError, ExpertFlowError, UsageError
from .config_file import read_config
from .headers import weight_names
from .partial_models import ADAPTER_CONFIG, refuse_adapter
from .refused_weights import other_weights, refuse_packed_index

_LOG_IN = "log in (hf auth login, or HF_TOKEN)"
CONFIG = "config.json"
INDICES = "*.safetensors.index.json"
TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "predictor.npz"]
"""Patterns of configuration, tokenizer, chat template, and the predictor that a repository may carry."""
SUBFOLDERS = "*/*"
"""Left out: in many repositories, subfolders hold second copies of the weights in other layouts."""
DownloadProgress = Callable[[int, int], None]
"""Callback for the bytes that have arrived and that are to be downloaded, called from any thread."""


def fetch_config(model: str, revision: str) -> Path:
    """Return the snapshot of a hub id, with its configuration and its index of weights but maybe nothing else.

    Raises UsageError (no such model or revision, gated, not cached and offline) or EngineError (the hub cannot be
    reached) with the client's reason in one line.
    """
    folder = _fetch(model, revision, [CONFIG, INDICES, ADAPTER_CONFIG])
    refuse_adapter(folder)
    if not (folder / CONFIG).is_file():
        what = "has no config.json, so it is not a model in the format of transformers"
        raise UsageError(what, model, "Choose the original repository, not one with GGUF or other files")
    return folder


def fetch_model(model: str, revision: str, report: DownloadProgress) -> Path:
    """Return the snapshot of a hub id with all files that a run needs; cached files are not fetched again.

    Raises what `fetch_config` raises, CheckpointError for a model that could not be run anyway, and EngineError where
    the disk is too small. All are raised before any weight is fetched.
    """
    folder = fetch_config(model, revision)
    config, listed = read_config(folder), _listing(model, folder)
    refuse_packed_index(config, folder, listed)
    weights = weight_names(folder, listed, config)
    missing_bytes = _check_listing(model, folder, weights)
    return _fetch(model, folder.name, [*TEXT_FILES, *weights], lambda done_bytes: report(done_bytes, missing_bytes))


def needed_weights(model: str, folder: Path) -> list[str]:
    """Return names of the files that hold the weights of a snapshot, fetched or not."""
    return weight_names(folder, _listing(model, folder))


def listed_bytes(model: str, folder: Path) -> int:
    """Return the bytes of all weights of a snapshot by the hub's listing, fetched or not; 0 if it is not cached."""
    sizes = _listing(model, folder)
    return sum(sizes.get(name, 0) for name in needed_weights(model, folder))


def _fetch(
    model: str, revision: str, patterns: list[str], report: Callable[[int], None] = lambda done_bytes: None
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            model,
            revision=revision or None,
            allow_patterns=patterns,
            ignore_patterns=SUBFOLDERS,
            tqdm_class=_reporting_bar(report),
        )
    except Exception as error:  # noqa: BLE001 - the client, its HTTP library and its transfer library have their own
        raise _explain(error, model, revision) from error
    return Path(found)


def _listing(model: str, folder: Path) -> dict[str, int]:
    """Return name and bytes of every file of a snapshot, by the client's cached listing; empty if it has none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(model, revision=folder.name)}
    except CachedRepoTreeNotFoundError:
        return {}


def _check_listing(model: str, folder: Path, weights: list[str]) -> int:
    """Return the bytes to be fetched. Raises UsageError for a file that is not listed, EngineError for a full disk."""
    sizes = _listing(model, folder)
    if absent := [name for name in weights if sizes and name not in sizes]:
        what = f"has no {absent[0]}{other_weights(sizes)}"
        raise UsageError(what, model, "Choose a repository with weights in safetensors format")
    missing_bytes = sum(size for name, size in sizes.items() if name in weights and not (folder / name).exists())
    free_bytes = _free_bytes(folder)
    if missing_bytes > free_bytes:
        what = f"{format_size(missing_bytes)} are to be downloaded, but only {format_size(free_bytes)} are free"
        raise EngineError(what, str(folder), "Make room, or set HF_HOME to a larger disk")
    return missing_bytes


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _reporting_bar(report: Callable[[int], None]) -> type:
    """Return a class of bars for `snapshot_download` that draw nothing: `report` gets the bytes so far.

    The client keeps one bar for bytes from the network and one for bytes on disk; the larger number counts.
    """
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            """Report the bytes; the library calls this ten times a second at most."""
            if self._counts_bytes:
                report(int(self.n))

    return Bar


def _explain(error: Exception, model: str, revision: str) -> ExpertFlowError:
    """Return the typed error for one that the hub's client raised while it looked for `model`."""
    match error:
        case GatedRepoError():
            return UsageError(
                f"is gated: {_reason(error)}", model, f"Ask for access on the model's page, then {_LOG_IN}"
            )
        case RepositoryNotFoundError():
            remedy = f"Check the name, or give a local folder; for a private model {_LOG_IN}"
            return UsageError(f"is not on the hub, or private: {_reason(error)}", model, remedy)
        case RevisionNotFoundError():
            what = f"the hub has no revision '{revision}' of it: {_reason(error)}"
            return UsageError(what, model, "Give a branch, a tag or a commit of that model as revision")
        case HFValidationError():
            return UsageError(f"cannot be a hub id: {_reason(error)}", model, "Give a local folder or owner/name")
        case LocalEntryNotFoundError():
            return _explain_absence(error, model)
        case OSError(errno=errno.ENOSPC):
            return EngineError(
                f"the disk is full: {_reason(error)}", model, "Make room, or set HF_HOME to a larger disk"
            )
    return EngineError(
        f"could not be fetched from the hub: {_reason(error)}", model, "Try again, or give a local folder"
    )


def _explain_absence(error: LocalEntryNotFoundError, model: str) -> ExpertFlowError:
    """Return the error for files that are not cached while the hub was not asked; its cause says why not."""
    cause = error.__cause__
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        remedy = "Unset HF_HUB_OFFLINE to download it, or give a local folder"
        return UsageError("is not in the hub's cache, and HF_HUB_OFFLINE is set", model, remedy)
    what = f"is not in the hub's cache, and the hub cannot be reached: {_reason(cause)}"
    return EngineError(what, model, "Check the connection and try again, or give a local folder")


def _reason(error: BaseException) -> str:
    """Return the library's reason in one line: the server's message where there is one."""
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    paragraphs = (message or str(error)).split("\n\n")
    line = " ".join(paragraphs[-1].splitlines()[0].split()) if paragraphs[-1].strip() else ""
    return line.rstrip(".") or type(error).__name__
