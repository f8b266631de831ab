"""The paper's predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path

from ..base.predictor_file import check_belongs
from ..base.spelling import tokenizer_spelling
from ..registry import ModelShape
from .file import read_paper
from .forecaster import T5Forecaster


def load_paper(file: Path, subject: ModelShape) -> T5Forecaster:
    """Raises UsageError if it is no such predictor, CheckpointError if it belongs to another model."""
    predictor = read_paper(file)
    check_belongs(predictor.header, subject, str(file))
    return T5Forecaster(predictor, tokenizer_spelling(subject.folder))
