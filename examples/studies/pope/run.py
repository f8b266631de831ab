"""The study of offloading and hallucination: `expertflow study pope`.

Asks small vision-language models POPE's questions through the engine, with a part of their experts in memory, and
compares every answer with that of the fully resident model.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError
from rich.console import Console

from ..resumable import ResultFolder, Row, digest_of, save_rows
from ..scoring.bad_rows import BadRows
from ..vlm.architectures import ARCHITECTURES
from ..vlm.folders import trained_folder
from ..vlm.widening import widen_folder
from .cells import KINDS, Cell, control_cells, exact_cells, quick_cells, speed_cells, whole_cells
from .control import run_control
from .engine_cell import run_engine_cell
from .images import write_scene_set
from .questions import AskedQuestion, images_with_unseen_pairs, load_questions, subset
from .results import SetFacts, compare_answers, quality_of, without_answers
from .tables import show_results

_QUICK_IMAGES, _QUICK_SET = 2, 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--quick", action="store_true", help="a few questions, one model, three cells")
    parser.add_argument("--out", type=Path, default=Path("study-pope"), help="folder of the results; a run resumes")
    parser.add_argument("--data", type=Path, help="folder of a published set: coco_pope_*.json and its images")
    parser.add_argument("--model", type=Path, action="append", help="model folder, instead of the trained small ones")
    parser.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--cells", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of cells to run")
    parser.add_argument("--images", type=int, default=40, help="images of exact and speed cells, six questions each")
    parser.add_argument("--part", action="store_true", help="ask control cells the questions of the exact cells alone")
    parser.add_argument("--widen", type=int, default=32, help="factor of the experts' width, a power of two")
    parser.add_argument("--link-rate", default="2GB", help="bytes a second of the emulated link")
    parser.add_argument("--seeds", type=int, default=1, help="repeats of each speed cell, in other orders")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows of --data and count them")
    parser.add_argument("--save", type=Path, help="write the rows without their answers as JSON into this file")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no cell after so many; 0: no limit")


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all cells that are not there yet, show the tables and return the rows."""
    console, bad = Console(stderr=True), BadRows(arguments.skip_bad)
    study = _Study(arguments, bad, console)
    rows = [row for cell in study.cells() if (row := study.run(cell)) is not None]
    compare_answers(rows)
    show_results(rows, console)
    figures = [without_answers(row) for row in rows]
    save_rows(arguments.save, figures)
    return {
        "questions": len(study.questions),
        "skipped_rows": dict(bad.counts),
        "left_out": study.results.left_out,
        "rows": figures,
    }


class _Study:
    """The questions, the models and the results of one run."""

    def __init__(self, arguments: argparse.Namespace, bad: BadRows, console: Console) -> None:
        self._arguments = arguments
        self.results = ResultFolder(arguments.out, arguments.minutes, console.log)
        folder = arguments.data or self._scenes()
        self.questions = load_questions(folder, bad)
        self._few = subset(self.questions, _QUICK_IMAGES if arguments.quick else arguments.images)
        self._facts = SetFacts(images_with_unseen_pairs(folder))
        self._folders: dict[str, Path] = self._named_models()

    def cells(self) -> list[Cell]:
        """Return the cells to run, in their order."""
        names = list(self._folders)
        if self._arguments.quick:
            return [cell for cell in quick_cells(names[0]) if cell.kind in self._arguments.cells]
        cells = [*exact_cells(names), *whole_cells(names), *control_cells(names)]
        cells += speed_cells(names, self._arguments.seeds)
        return [cell for cell in cells if cell.kind in self._arguments.cells]

    def run(self, cell: Cell) -> Row | None:
        """Return the cell's row."""
        part = "-part" if cell.kind == "control" and self._arguments.part else ""
        return self.results.run(f"{cell.name}{part}", lambda: self._compute(cell), self._settings(cell))

    def _settings(self, cell: Cell) -> Row:
        """Return what a cell depends on and its name does not say."""
        asked = ((each.rule, each.question) for each in self._asked(cell))
        settings: Row = {"questions": digest_of(asked)}
        if self._arguments.model:
            settings["model"] = str(self._folders[cell.model].resolve())
        if cell.kind in ("exact", "speed"):
            settings |= {"widen": self._factor, "link_rate": self._arguments.link_rate}
        return settings

    def _asked(self, cell: Cell) -> list[AskedQuestion]:
        whole = cell.kind == "whole" or (cell.kind == "control" and not self._arguments.part)
        return self.questions if whole and not self._arguments.quick else self._few

    @property
    def _factor(self) -> int:
        return 2 if self._arguments.quick else self._arguments.widen

    def _compute(self, cell: Cell) -> Row:
        questions = self._asked(cell)
        if cell.kind == "control":
            texts, figures = run_control(cell, self._folders[cell.model], questions)
            logprobs: list[float] = []
        else:
            folder = self._folders[cell.model] if cell.kind == "whole" else self._widened(cell.model)
            answers = run_engine_cell(cell, folder, questions, self._arguments.link_rate)
            texts, logprobs, figures = answers.texts, answers.first_logprobs, answers.figures
        row: dict[str, Any] = {**asdict(cell), "figures": figures, "quality": self._quality(questions, texts)}
        return {**row, "answers": texts, "logprobs": logprobs}

    def _quality(self, questions: list[AskedQuestion], texts: list[str]) -> dict[str, Any]:
        return quality_of(questions, texts, self._facts)

    def _scenes(self) -> Path:
        folder = self._arguments.out / ("quick-scenes" if self._arguments.quick else "scenes")
        if not (folder / "objects.json").is_file():
            write_scene_set(folder, **({"count": _QUICK_SET} if self._arguments.quick else {}))
        return folder

    def _named_models(self) -> dict[str, Path]:
        if self._arguments.model:
            folders = {folder.resolve().name: folder for folder in self._arguments.model}
            if len(folders) < len(self._arguments.model):
                raise UsageError("names two folders of one name", "model", "Rename one: cells have the folder's name")
            return folders
        return {name: trained_folder(name) for name in self._arguments.architectures}

    def _widened(self, model: str) -> Path:
        if self._arguments.model or self._factor == 1:
            return self._folders[model]
        folder = self._arguments.out / "models" / f"{model}-x{self._factor}"
        if not folder.is_dir():
            widen_folder(self._folders[model], folder, self._factor)
        return folder
