"""A path predictor from its file, for a model."""

from __future__ import annotations

from pathlib import Path as FilePath

from ..belonging import check_belongs
from ..choice import Subject
from .file import read_path
from .forecaster import Path
from .lexicon import Spelling


def load_path(file: FilePath, subject: Subject) -> Path:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    shape = predictor.header.shape
    sizes = (shape.layers, shape.experts, shape.top_k)
    check_belongs(sizes, predictor.header.model, subject, str(file))
    return Path(predictor, tokenizer_spelling(subject.folder) if shape.grams or predictor.table.named else None)


def tokenizer_spelling(folder: str) -> Spelling | None:
    """Token strings as the model's tokenizer.json has them; None without one."""
    file = FilePath(folder) / "tokenizer.json"
    if not folder or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).id_to_token
