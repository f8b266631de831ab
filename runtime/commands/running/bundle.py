"""`expertflow bundle`: one file with everything that helps to find out what an engine does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from ....configs.sizes import format_size
from ...bundle.file import write_bundle
from ...bundle.gather import gather_bundle
from ...client.watching import find_engine
from ...command_line.base import DONE, Command
from ...monitor.progress import ProgressView
from ...monitor.tables import result_console
from ...service.whole_files import require_place

LONGEST_S = 600


@dataclass(frozen=True, kw_only=True)
class Bundle(Command):
    """Write what is known of a running engine into a file: for a colleague, an issue, or a later look.

    It has the configuration (secrets masked), versions, the machine as `doctor` sees it, all metrics, the last hour and
    a timeline; no prompt and no output. `top --from FILE` and `why FILE` open it.
    """

    file: tyro.conf.Positional[Path]
    """File to write, for example engine.zip."""
    address: str = ""
    """Address of the engine, as `expertflow serve` prints it. Empty: your only running engine."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of your keys, for an address over TCP (tcp://HOST:PORT): without its configuration, with this machine."""
    seconds: Annotated[float, Meta(ge=0, le=LONGEST_S)] = 5.0
    """Time for which the engine is watched: `why` explains the waits of these seconds, unless there is a timeline."""
    timeline: Path | None = None
    """Timeline that the engine writes; by default that of its option of the same name."""

    def run(self) -> int:
        require_place(self.file)
        with ProgressView() as view:
            bundle = gather_bundle(find_engine(self.address), self.seconds, view, self.timeline, self.keys)
        write_bundle(self.file, bundle)
        size = format_size(self.file.stat().st_size)
        words = f"{self.file}: {size}, without prompts. Open it: expertflow top --from {self.file}"
        result_console().print(words, soft_wrap=True)
        return DONE
