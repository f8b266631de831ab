"""Logits of prompts, in pieces: those of transformers' full forward, for each family and with images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import RequestError
from expertflow.ipc.messages import Details, RequestRow, Sampling
from expertflow.ipc.shared.attachments import FOLDER
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.tests.model.replay import model_to_run
from expertflow.tests.models.families import FAMILIES, VOCABULARY, tiny_model
from expertflow.tests.models.vision import VISION_FAMILIES, VisionReference, image_prompts, read_prompt, save_vision
from expertflow.workers.model import prompt_logits
from expertflow.workers.model.images import read_images
from expertflow.workers.model.prompt_logits import SplitModel
from expertflow.workers.model.unit import Unit

TOLERANCE = 1e-4
ASKING, PIECE = Details(prompt_logprobs=0), 4
"""Positions of a piece."""


@pytest.fixture(autouse=True)
def inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prompt_logits, "MAX_PIECE", PIECE * VOCABULARY)
    with torch.inference_mode():
        yield


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def asking(number: int, ids: list[int], output: tuple[int, ...] = ()) -> RequestRow:
    return RequestRow(number, [*ids, *output], len(output), Sampling(), details=ASKING)


def pieces_of(unit: Unit, number: int) -> torch.Tensor:
    """All logits of a prompt, each piece no larger than it may be."""
    start, pieces = unit.prompt_logits(number)
    found = list(pieces)
    assert start == 1 and all(len(piece) <= PIECE for piece in found)
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_prompt_are_those_of_a_full_forward(family: str) -> None:
    """Of two rows of a padded unit, one of which has output already; the others' logits stay as they were."""
    model, ids, other = model_to_run(family), prompt(13, 1), prompt(6, 2)
    unit, plain = Unit(model.config), Unit(model.config)
    rows = [asking(4, ids), asking(7, other, (9, 8)), RequestRow(8, prompt(3, 3), 0, Sampling())]
    newest = unit.run(model, unit.prepare_prefill(rows))
    for row, own in ((4, ids), (7, other)):
        expected = tiny_model(family)(input_ids=torch.tensor([own])).logits[0, :-1]
        torch.testing.assert_close(pieces_of(unit, row), expected, rtol=TOLERANCE, atol=TOLERANCE)
    silent = [RequestRow(row.number, row.token_ids, row.generated, Sampling()) for row in rows]
    assert torch.equal(newest, plain.run(model, plain.prepare_prefill(silent)))
    unit.release_prompts()
    assert unit.prompt_logits(4)[0] == len(ids) and list(unit.prompt_logits(4)[1]) == []


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_prompt_with_images_has_logits_too(family: str, tmp_path: Path) -> None:
    save_vision(family, tmp_path / "model")
    reference, frontend = VisionReference(tmp_path / "model"), ImagePreprocessor(str(tmp_path))
    shown: Any = image_prompts()[0]
    ids, content = read_prompt(frontend, shown, reference)
    row = RequestRow(0, ids, 0, Sampling(), frontend.keep(content), details=ASKING)
    unit = Unit(reference.model.config)
    images = read_images(reference.model, row, tmp_path / FOLDER)
    unit.run(reference.model, unit.prepare_prefill([row], [images]))
    expected = reference.model(**reference.inputs(shown)).logits[0, :-1]
    torch.testing.assert_close(pieces_of(unit, 0), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_prompt_of_one_token_has_none() -> None:
    model = tiny_model("olmoe")
    unit = Unit(model.config)
    unit.run(model, unit.prepare_prefill([asking(0, [5])]))
    assert list(unit.prompt_logits(0)[1]) == []


def test_a_model_whose_head_stands_alone_is_refused_by_name() -> None:
    """Silently wrong logits would be worse."""
    model = tiny_model("olmoe")
    with pytest.raises(RequestError, match="head of this model"):
        SplitModel(model.model)
