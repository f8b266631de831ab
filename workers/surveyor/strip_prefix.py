"""Remove a wrapper's prefix before every name: `python -m expertflow.workers.surveyor.strip_prefix FOLDER`.

Only headers and the index are written again, in place. A shorter header is filled up with spaces, as the format allows,
so no weight moves. Exit code 0: done, 2: refused, with the reason on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ExpertFlowError, UsageError
from ..checkpoint.headers import INDEX, checkpoint_files, read_headers
from ..checkpoint.partial_models import wrapper_prefix


def strip_prefix(folder: Path) -> str:
    """Rename all tensors of a checkpoint folder in place and return the prefix that they had.

    Raises UsageError if there is no such prefix, or if the files are links (into a download cache), CheckpointError for
    a folder that cannot be read.
    """
    from ..model.architecture import build_on_meta, load_config, resolve_dtype

    files = checkpoint_files(folder)
    if link := next((file for file in files if file.is_symlink()), None):
        raise UsageError("is a link into a cache, whose files must stay", str(link), "Copy the folder: cp -rL")
    config = load_config(folder)
    model = build_on_meta(config, resolve_dtype(config, "auto", "float32"))
    prefix = wrapper_prefix(read_headers(files), model.state_dict())
    if not prefix:
        raise UsageError("has no prefix before the names of its tensors", str(folder), "Leave it as it is")
    for file in files:
        _rename_header(file, prefix)
    _rename_index(folder / INDEX, prefix)
    return prefix


def _rename_header(file: Path, prefix: str) -> None:
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        table: dict[str, Any] = json.loads(stream.read(length))
        renamed = {name.removeprefix(prefix): entry for name, entry in table.items()}
        header = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode()
        if len(renamed) != len(table) or len(header) > length:
            raise CheckpointError("cannot be renamed in place", str(file), "Save it again without the wrapper")
        stream.seek(8)
        stream.write(header.ljust(length))
        os.fsync(stream.fileno())


def _rename_index(file: Path, prefix: str) -> None:
    if not file.is_file():
        return
    index: dict[str, Any] = json.loads(file.read_bytes())
    index["weight_map"] = {name.removeprefix(prefix): shard for name, shard in index["weight_map"].items()}
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(json.dumps(index, indent=2))
    os.replace(fresh, file)


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m expertflow.workers.surveyor.strip_prefix FOLDER\n")
        return 2
    try:
        prefix = strip_prefix(Path(sys.argv[1]))
    except ExpertFlowError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"Took '{prefix}' away from the names of all tensors\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
