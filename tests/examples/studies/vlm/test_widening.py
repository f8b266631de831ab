"""A widened model computes the same function with experts as wide as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import UsageError
from expertflow.examples.studies.vlm.architectures import ARCHITECTURES
from expertflow.examples.studies.vlm.batches import BatchSource
from expertflow.examples.studies.vlm.folders import write_parts
from expertflow.examples.studies.vlm.training import new_model
from expertflow.examples.studies.vlm.vocabulary import build_tokenizer
from expertflow.examples.studies.vlm.widening import widen_folder
from expertflow.workers.model.architecture import load_config, model_class


def loaded(folder: Path) -> Any:
    cls: Any = model_class(load_config(folder))
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_stay_and_experts_grow(architecture: str, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    write_parts(new_model(architecture, len(build_tokenizer()), seed=1), architecture, narrow, torch.float32)
    widen_folder(narrow, tmp_path / "wide", 4)
    models = [loaded(narrow), loaded(tmp_path / "wide")]
    batch = BatchSource(build_tokenizer(), rows=1, seed=3).draw()
    with torch.no_grad():
        logits = [model(**batch.model_inputs()).logits for model in models]
    assert torch.allclose(*logits, atol=1e-4) and not torch.equal(logits[0], torch.zeros_like(logits[0]))
    sizes = [sum(each.numel() for name, each in model.named_parameters() if ".experts." in name) for model in models]
    assert sizes[1] == 4 * sizes[0]
    assert {file.name for file in narrow.iterdir()} == {file.name for file in (tmp_path / "wide").iterdir()}


def test_only_powers_of_two_are_exact(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="power of two"):
        widen_folder(tmp_path, tmp_path / "wide", 3)
