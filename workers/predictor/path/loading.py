"""A path predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path as FilePath

from ..choice import Subject
from ..spelling import tokenizer_spelling
from ..stored import check_belongs
from .file import read_path
from .forecaster import Path


def load_path(file: FilePath, subject: Subject) -> Path:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    check_belongs(predictor.header, subject, str(file))
    by_string = predictor.header.shape.grams or predictor.table.named
    return Path(predictor, tokenizer_spelling(subject.folder) if by_string else None)
