"""Parts of a study: each is a JSON file in the folder of results, made once, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from ....errors import UsageError


class PartStore:
    """Folder of finished parts. A part that was made with other settings is an error, never mixed in."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Create the folder. Raises UsageError if it cannot be written to."""
        self.folder, self._settings = folder, settings
        self._console = Console(stderr=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot be made ({error.strerror})"
            raise UsageError(what, str(folder), "Name a folder that can be written to") from error

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part as plain data: from its file, or made now and written.

        Raises UsageError if its file was made with other settings, or is no part.
        """
        file = self.folder / f"{name}.json"
        if file.is_file():
            return self._read(file)
        self._console.print(f"{name} …", style="dim", highlight=False)
        result = msgspec.to_builtins(make(), str_keys=True)
        unfinished = file.with_suffix(".part")
        try:
            unfinished.write_text(json.dumps({"settings": self._settings, "result": result}, indent=1) + "\n")
            unfinished.replace(file)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise UsageError(what, str(file), "Make room, or name another --out; finished parts are kept") from error
        return result

    def _read(self, file: Path) -> Any:
        try:
            stored = json.loads(file.read_text())
            settings, result = dict(stored["settings"]), stored["result"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError("is no part of this study", str(file), "Remove it, or name another --out") from error
        if settings != self._settings:
            changed = [key for key in self._settings if settings.get(key) != self._settings[key]]
            what = f"was made with other settings ({', '.join(changed) or 'fewer'})"
            raise UsageError(what, str(file), "Name another --out, or remove the old parts")
        return result
