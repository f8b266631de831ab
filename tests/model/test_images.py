"""Rows with images in units, against transformers on each row alone with the same images (I1b), and again (I4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from expertflow import ImagePrompt
from expertflow.errors import RequestError
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.ipc.shared.attachments import FOLDER
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.tests.models.families import tiny_model
from expertflow.tests.models.vision import (
    IMAGE,
    IMAGE_ID,
    VISION_FAMILIES,
    VisionReference,
    image_prompts,
    picture,
    read_prompt,
    save_vision,
)
from expertflow.workers.model.images import RowImages, StepImages, image_inputs, read_images
from expertflow.workers.model.unit import Unit
from greenlet import getcurrent, greenlet

TOLERANCE = 1e-4
Prompt = ImagePrompt | list[int]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("vision")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            save_vision(family, root / family)
        return root / family

    return folder


@dataclass
class Seen:
    """Greedy rows in units; `logits[row, length]` are those after `length` tokens of that row."""

    folder: Path
    run_dir: Path
    prompts: list[Prompt]
    rows: list[RequestRow] = field(default_factory=list)
    logits: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    texts: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reference = VisionReference(self.folder)
        frontend = ImagePreprocessor(str(self.run_dir))
        for number, prompt in enumerate(self.prompts):
            ids, name = prompt, ""
            if isinstance(prompt, ImagePrompt):
                ids, content = read_prompt(frontend, prompt, self.reference)
                name = frontend.keep(content)
            self.rows.append(RequestRow(number, ids, 0, Sampling(), name))  # pyright: ignore[reportArgumentType]

    def images(self, row: RequestRow) -> RowImages | None:
        return read_images(self.reference.model, row, self.run_dir / FOLDER)

    @torch.inference_mode()
    def start(self, *rows: RequestRow) -> Unit:
        unit = Unit(self.reference.model.config)
        step = unit.prepare_prefill(rows, [self.images(row) for row in rows])
        self._note(unit, unit.run(self.reference.model, step))
        return unit

    @torch.inference_mode()
    def step(self, unit: Unit, times: int = 1) -> None:
        for _ in range(times):
            self._note(unit, unit.run(self.reference.model, unit.prepare_step()))

    def _note(self, unit: Unit, logits: torch.Tensor) -> None:
        for row, each in zip(unit.rows, logits, strict=True):
            self.logits[row.number, len(row.token_ids)] = each.clone()
        unit.append(logits.argmax(-1).tolist())
        self.texts |= {row.number: list(row.token_ids) for row in unit.rows}

    def worst_error(self) -> float:
        """Against each row alone, unpadded and teacher-forced, as a share of the largest logit."""
        errors = []
        for number, text in self.texts.items():
            length = len(self.rows[number].token_ids)
            alone = self.reference.teacher_forced(self.prompts[number], text[length:])
            for (row, at), logits in self.logits.items():
                if row == number:
                    errors.append(float((alone[at - length] - logits).abs().max() / alone.abs().max()))
        return max(errors)


def a_life(seen: Seen) -> None:
    """Rows with and without images are padded, join, leave, part and meet again."""
    first, text, two, other, end, *_ = seen.rows
    unit = seen.start(first, text, two)
    seen.step(unit, 2)
    unit.join(seen.start(other, end))
    seen.step(unit, 2)
    unit.drop([1])
    half = unit.split([4, 0])
    seen.step(half, 2)
    seen.step(unit)
    half.join(unit)
    seen.step(half, 3)


def lively(folder: Path, run_dir: Path) -> Seen:
    """The usual prompts, one of them with an image at its very end."""
    prompts: list[Prompt] = image_prompts()[:4] + [ImagePrompt(f"w9 w10 {IMAGE}", [picture(16, 48, 4)])]
    return Seen(folder, run_dir, prompts)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_rows_with_images_equal_transformers_on_each_alone(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    seen = lively(folders(family), tmp_path)
    a_life(seen)
    assert len(seen.logits) > 25
    assert seen.worst_error() <= TOLERANCE


def _one_place_off(images: RowImages) -> RowImages:
    return replace(images, shown=images.shown.roll(1))


def _flat(images: RowImages) -> RowImages:
    return replace(images, positions=None)


def _darker(images: RowImages) -> RowImages:
    return replace(images, inputs=images.inputs | {"pixel_values": images.inputs["pixel_values"] * 0.5})


@pytest.mark.parametrize("spoil", [_one_place_off, _flat, _darker])
def test_wrong_places_positions_or_pixels_would_be_noticed(
    spoil: Callable[[RowImages], RowImages],
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = lively(folders("qwen3_vl_moe"), tmp_path)
    honest = Seen.images
    monkeypatch.setattr(Seen, "images", lambda self, row: (found := honest(self, row)) and spoil(found))
    a_life(seen)
    assert seen.worst_error() > 100 * TOLERANCE


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_row_computed_again_goes_on_as_before(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Also when it has generated image tokens, which are no images: the library's own prefill would refuse them."""
    seen = Seen(folders(family), tmp_path, [image_prompts()[2], image_prompts()[1]])
    unit = seen.start(*seen.rows)
    unit.rows[0].token_ids[-1] = unit.rows[1].token_ids[-1] = IMAGE_ID
    seen.step(unit, 3)
    rows = unit.whole_rows()
    assert [row.attachment for row in rows] == [row.attachment for row in seen.rows] and rows[0].attachment
    seen.start(*rows)
    keys = [(row.number, len(row.token_ids)) for row in rows]
    computed_again = [seen.logits.pop(key) for key in keys]
    seen.step(unit)
    for key, logits in zip(keys, computed_again, strict=True):
        assert (seen.logits[key] - logits).abs().max() <= TOLERANCE * logits.abs().max()


def test_an_attachment_that_cannot_be_used_is_an_error_of_its_request(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    seen = Seen(folders("qwen3_vl_moe"), tmp_path, image_prompts()[:1])
    row = seen.rows[0]
    bad = {
        "no name": RequestRow(0, row.token_ids, 0, Sampling(), "../survey"),
        "cannot be read": RequestRow(0, row.token_ids, 0, Sampling(), "0" * 32 + ".1"),
        "token types": RequestRow(0, row.token_ids[1:], 0, Sampling(), row.attachment),
    }
    for words, wrong in bad.items():
        with pytest.raises(RequestError, match=words):
            seen.images(wrong)
    (tmp_path / FOLDER / row.attachment).write_bytes(b"garbage")
    with pytest.raises(RequestError, match="cannot be read"):
        seen.images(row)


def test_a_text_model_takes_no_images(tmp_path: Path) -> None:
    row = RequestRow(0, [5, 6], 0, Sampling(), "0" * 32 + ".1")
    with pytest.raises(RequestError, match="takes no images"):
        read_images(tiny_model("olmoe"), row, tmp_path)


def test_forwards_in_lockstep_place_their_own_images(folders: Callable[[str], Path]) -> None:
    """One forward stops while another runs: each has its own placeholder mask, and a text the library's."""
    model = VisionReference(folders("qwen3_vl_moe")).model
    seen: dict[str, list[list[bool]]] = {}

    main = getcurrent()

    def forward(name: str, shown: list[bool]) -> None:
        images = StepImages({}, torch.tensor([shown])) if any(shown) else None
        with image_inputs(model, images):
            main.switch()
            embedded = torch.zeros(1, len(shown), 1)
            mask, _ = model.base_model.get_placeholder_mask(torch.full((1, len(shown)), 5), inputs_embeds=embedded)
            seen[name] = mask[..., 0].tolist()

    rows = {"one": [True, False, False], "two": [False, True, True, False], "text": [False, False]}
    started = [greenlet(lambda name=name, shown=shown: forward(name, shown)) for name, shown in rows.items()]
    for each in started + started[::-1]:
        each.switch()
    assert seen == {name: [shown] for name, shown in rows.items()}
