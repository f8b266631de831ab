"""`expertflow study`: runs one of the studies in `examples/studies/`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar, Literal

import tyro
from msgspec import Meta

from ...errors import UsageError
from ..command_line.base import DONE, Command

STUDIES = f"{__name__.partition('.')[0]}.examples.studies"
OWN_FIELDS = {"study", "debug"}
"""Fields of the command that are no options of a study."""


@dataclass(frozen=True, kw_only=True)
class Study(Command):
    """Run a study: its tables are printed, and every finished part is kept, so that a second run goes on.

    The studies are part of the source tree; the pages of docs/studies/ hold what they showed. A study may have more
    options: python -m expertflow.examples.studies.NAME --help lists them.
    """

    option_groups: ClassVar = {"Study": ("quick", "out", "data", "seeds", "minutes", "skip_bad")}
    study: tyro.conf.Positional[Literal["pope", "routing", "recommend"]]
    """pope: does offloading keep a vision-language model's answers; routing: what modality-guided routing costs and
    gains; recommend: expert recommenders beside DeepFM and DCN."""
    quick: bool = False
    """The smallest form of everything: a check that it runs, no result."""
    out: Path | None = None
    """Folder of the finished parts; without it the study names one."""
    data: Path | None = None
    """Folder with a published data set, in place of data made by the study."""
    seeds: str | None = None
    """Seeds: how many (pope, routing), or which, with commas (recommend)."""
    minutes: Annotated[float, Meta(gt=0)] | None = None
    """Time after which no further part is begun (pope, routing)."""
    skip_bad: bool = False
    """Leave out rows of the data that are broken, and count them, instead of stopping at the first."""

    def run(self) -> int:
        module = study_module(self.study)
        parser = argparse.ArgumentParser(prog=f"expertflow study {self.study}")
        module.add_options(parser)
        module.run(parser.parse_args(self.words()))
        return DONE

    def words(self) -> list[str]:
        """Return the options that the user gave, as words for the parser of the study."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in OWN_FIELDS}
        return [word for name, value in given.items() for word in _words(name, value)]


def study_module(name: str) -> ModuleType:
    """Return the module that runs a study. Raises UsageError where only the package is installed, without studies."""
    try:
        return import_module(f"{STUDIES}.{name}.run")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(f"{STUDIES.partition('.')[0]}."):
            raise UsageError(
                "is not part of the installed package", f"study {name}", "Run it in a clone of the repository."
            ) from error
        remedy = "pip install 'expertflow-runtime[studies]'."
        raise UsageError(f"needs {error.name}", f"study {name}", remedy) from error


def _words(name: str, value: object) -> list[str]:
    if value is None or value is False:
        return []
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]
