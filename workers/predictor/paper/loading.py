"""The paper's predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path

from ..choice import Subject
from ..spelling import tokenizer_spelling
from ..stored import check_belongs
from .file import read_paper
from .forecaster import Paper


def load_paper(file: Path, subject: Subject) -> Paper:
    """Raises UsageError if it is no such predictor, CheckpointError if it belongs to another model."""
    predictor = read_paper(file)
    check_belongs(predictor.header, subject, str(file))
    return Paper(predictor, tokenizer_spelling(subject.folder))
