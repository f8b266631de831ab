"""A path predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path

from ..base.predictor_file import check_belongs
from ..base.spelling import tokenizer_spelling
from ..registry import ModelShape
from .file import read_path
from .forecaster import PathForecaster


def load_path(file: Path, subject: ModelShape) -> PathForecaster:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    check_belongs(predictor.header, subject, str(file))
    by_string = predictor.header.shape.grams or predictor.table.named
    return PathForecaster(predictor, tokenizer_spelling(subject.folder) if by_string else None)
