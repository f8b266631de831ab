"""A path predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path as FilePath

from ..choice import Subject
from ..stored import check_belongs
from .file import read_path
from .forecaster import Path
from .lexicon import Spelling


def load_path(file: FilePath, subject: Subject) -> Path:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    check_belongs(predictor.header, subject, str(file))
    by_string = predictor.header.shape.grams or predictor.table.named
    return Path(predictor, tokenizer_spelling(subject.folder) if by_string else None)


def tokenizer_spelling(folder: str) -> Spelling | None:
    """Token strings as the model's tokenizer.json has them; None without one."""
    file = FilePath(folder) / "tokenizer.json"
    if not folder or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).id_to_token
