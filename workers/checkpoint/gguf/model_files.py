"""The files that a GGUF model consists of: one, or parts that are numbered `NAME-00001-of-00003.gguf`."""

from __future__ import annotations

import re
from pathlib import Path

from ....errors import CheckpointError
from .container import Container, read_container

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REDOWNLOAD = "Download all parts of the model into one folder"


def model_files(file: Path) -> list[Path]:
    """Return all parts of the model that `file` is, or is a part of, in order.

    Raises CheckpointError if a part is missing.
    """
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    parts = [file.with_name(f"{match['name']}-{number:05}-of-{count:05}{SUFFIX}") for number in range(1, count + 1)]
    if absent := next((part for part in parts if not part.is_file()), None):
        raise CheckpointError(f"is one of {count} parts, and {absent.name} is missing", str(file), _REDOWNLOAD)
    return parts


def model_name(file: Path) -> str:
    """Return the name of a model file without its suffix and the number of the part."""
    match = _PART.fullmatch(file.name)
    return match["name"] if match else file.name.removesuffix(SUFFIX)


def only_model(folder: Path) -> Path | None:
    """Return the first file of the only GGUF model in a folder, None if there is none.

    A vision part in a file of its own (`mmproj…`) does not count. Raises CheckpointError if there are several.
    """
    found = [file for file in sorted(folder.glob("*" + SUFFIX)) if not file.name.startswith("mmproj")]
    models = {model_name(file): file for file in reversed(found)}
    if len(models) > 1:
        named = ", ".join(sorted(models)[:3])
        remedy = "Name one of its files"
        raise CheckpointError(f"has several GGUF models ({named})", str(folder), remedy)
    return next(iter(models.values()), None)


def read_containers(files: list[Path]) -> list[Container]:
    """Return the headers of all parts of a model. Raises CheckpointError if they do not belong together."""
    containers = [read_container(file) for file in files]
    _check_parts(containers)
    names = [tensor.name for container in containers for tensor in container.tensors]
    if len(set(names)) < len(names):
        raise CheckpointError("has parts that hold the same tensor twice", str(files[0]), _REDOWNLOAD)
    if not containers[0].architecture:
        raise CheckpointError("states no general.architecture, so it is no model", str(files[0]), _REDOWNLOAD)
    return containers


def _check_parts(containers: list[Container]) -> None:
    for index, container in enumerate(containers):
        stated = container.number("split.no"), container.number("split.count")
        if len(containers) == 1 and (stated[1] or 1) > 1:
            what = f"is part {(stated[0] or 0) + 1} of {stated[1]} under a name of its own"
            raise CheckpointError(what, str(container.path), "Give all parts their names back: NAME-00001-of-…")
        if len(containers) > 1 and stated != (index, len(containers)):
            what = f"states that it is part {(stated[0] or 0) + 1} of {stated[1]}, unlike its name"
            raise CheckpointError(what, str(container.path), _REDOWNLOAD)
    stated = containers[0].number("split.tensors.count")
    held = sum(len(container.tensors) for container in containers)
    if stated is not None and stated != held:
        what = f"states {stated} tensors in all parts, which hold {held}"
        raise CheckpointError(what, str(containers[0].path), _REDOWNLOAD)
