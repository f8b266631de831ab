"""Rows with images over expert slots: the same bits for every budget (I1a), the logits of transformers (I1b)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from expertflow import ImagePrompt
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.ipc.shared.attachments import FOLDER
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.vision import VISION_FAMILIES, VisionReference, image_prompts, read_prompt, save_vision
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute import executor
from expertflow.workers.compute.recording import digest_rows
from expertflow.workers.model.images import RowImages, read_images
from expertflow.workers.model.unit import Unit
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from torch import Tensor

TOLERANCE, CAUGHT = 1e-4, 5e-3
FEW = 3
"""Slots: fewer than the experts of one layer."""
ERNIE = "ernie4_5_vl_moe"
PROMPTS = image_prompts()


@dataclass
class Ready:
    """A family's tiny model, ready to run."""

    folder: Path
    survey: Survey
    rows: list[RequestRow]
    reference: VisionReference

    @property
    def attachments(self) -> Path:
        return self.folder / FOLDER


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ready]]:
    @cache
    def make(family: str) -> Ready:
        folder = tmp_path_factory.mktemp(family)
        save_vision(family, folder)
        frontend = ImagePreprocessor(str(folder))
        reference = VisionReference(folder)
        rows = [_row(frontend, reference, number, prompt) for number, prompt in enumerate(PROMPTS)]
        return Ready(folder, survey_checkpoint(str(folder)), rows, reference)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)


def _row(
    frontend: ImagePreprocessor, reference: VisionReference, number: int, prompt: ImagePrompt | list[int]
) -> RequestRow:
    if not isinstance(prompt, ImagePrompt):
        return RequestRow(number, prompt, 0, Sampling())
    ids, content = read_prompt(frontend, prompt, reference)
    return RequestRow(number, ids, 0, Sampling(), frontend.keep(content))


@dataclass
class Life:
    """What came of some rows."""

    digests: list[bytes] = field(default_factory=list)
    logits: dict[int, list[Tensor]] = field(default_factory=dict)
    routes: list[np.ndarray] = field(default_factory=list)
    """int [tokens, layers, top-k] of each step."""

    def choose(self, step: RunStep, unit: Unit, logits: Tensor) -> Any:
        self.digests.append(digest_rows(logits))
        for number, each in zip(unit.numbers, logits, strict=True):
            self.logits.setdefault(number, []).append(each.clone())
        return executor.sample(step, unit, logits)

    def error(self, reference: VisionReference) -> float:
        """The largest difference to each row alone, as a share of its largest logit; other tokens are as bad as can
        be."""
        errors = []
        for number, mine in self.logits.items():
            tokens = [int(each.argmax()) for each in mine]
            alone = reference.teacher_forced(PROMPTS[number], tokens[:-1])
            errors.append(float((alone - torch.stack(mine)).abs().max() / alone.abs().max()))
        return max(errors)


def live(ready: Ready, slots: int, survey: Survey | None = None) -> Life:
    """Three prefills (a mixed one, one of text, one of images) that meet, four tokens each."""
    survey, life = survey or ready.survey, Life()
    first, text, two, other, end, typed = ready.rows
    steps = [
        RunStep(number=0, unit=1, admit=[first, text, two]),
        RunStep(number=1, unit=2, admit=[typed]),
        RunStep(number=2, unit=3, admit=[other, end]),
        RunStep(number=3, unit=1, join=[2]),
        RunStep(number=4, unit=1, join=[3]),
        RunStep(number=5, unit=1),
    ]
    with LocalRuntime(survey, slots, choose=life.choose, attachments=ready.attachments) as runtime:
        for step in steps:
            stepped, used = runtime.run(step)
            assert not stepped.failed and used is not None
            life.routes.append(
                np.frombuffer(used.experts, "<u2").reshape(len(used.token_ids), survey.layers, survey.top_k)
            )
    return life


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_any_number_of_slots_gives_the_same_bits_and_the_logits_of_transformers(
    family: str, ready: Callable[[str], Ready]
) -> None:
    mine = ready(family)
    resident, few = live(mine, mine.survey.expert_count), live(mine, FEW)
    assert few.digests == resident.digests
    assert resident.error(mine.reference) <= TOLERANCE


# Two kinds of experts in a layer


def test_every_token_has_experts_of_its_kind(ready: Callable[[str], Ready]) -> None:
    """Images, and the marks around them, go to the second half; the text before and after, and all later tokens, to
    the first."""
    mine = ready(ERNIE)
    survey = mine.survey
    assert (survey.experts, survey.kinds, survey.top_k) == (16, 2, 2)
    life = live(mine, survey.expert_count)
    seen = [images.types["moe_mm_token_type_ids"] for row in mine.rows if (images := _images(mine, row)) is not None]
    counted = sum(int(each.sum()) for each in seen)
    kinds = [np.unique(routes >= survey.experts // survey.kinds, axis=2) for routes in life.routes[:3]]
    assert all(each.shape[2] == 1 for each in kinds), "a token of both kinds"
    assert sum(int(each[:, 0, 0].sum()) for each in kinds) == counted > 0
    assert all((routes < survey.experts // survey.kinds).all() for routes in life.routes[3:])


def _images(ready: Ready, row: RequestRow) -> RowImages | None:
    return read_images(ready.reference.model, row, ready.attachments)


def test_bytes_are_counted_by_kind(ready: Callable[[str], Ready]) -> None:
    """Of the published model one kind has three times the bytes of the other, here twice."""
    survey = ready(ERNIE).survey
    assert survey.kind_bytes == [3 * 64 * 32 * 4, 3 * 64 * 16 * 4]
    assert survey.expert_bytes == survey.bytes_of(0) == survey.bytes_of(7) == 2 * survey.bytes_of(8)
    assert survey.experts_bytes == 2 * 8 * sum(survey.kind_bytes)
    parameters = ready(ERNIE).reference.model.named_parameters()
    assert survey.experts_bytes == sum(each.nbytes for name, each in parameters if "_moe.experts." in name)
    assert survey.expert_bytes <= survey.stride_bytes < 1.1 * survey.expert_bytes + 1024


@pytest.mark.parametrize("tier", ["disk", "host"])
def test_slots_hold_the_experts_of_either_kind(tier: str, ready: Callable[[str], Ready]) -> None:
    """After an expert of the other kind has been there, too."""
    mine = ready(ERNIE)
    own = dict(mine.reference.model.named_parameters())
    with LocalRuntime(mine.survey, 1, tier=tier) as runtime:
        feed = runtime._residency
        for expert in (3, 11, 4, 8):
            feed.begin_step(expert)
            feed.begin(1, [expert])
            (((_, weights),),) = feed.stream()
            part, number = ("text_moe", expert) if expert < 8 else ("vision_moe", expert - 8)
            assert list(weights) == [f"{part}.experts.gate_up_proj", f"{part}.experts.down_proj"]
            for name, weight in weights.items():
                assert torch.equal(weight, own[f"{mine.survey.module_names[1]}.{name}"][number])


# Mutants


@pytest.mark.parametrize("half", [0, 1])
def test_exchanged_experts_of_either_kind_would_be_noticed(half: int, ready: Callable[[str], Ready]) -> None:
    mine = ready(ERNIE)
    places = mine.survey.place_table().copy()
    kind = slice(8 * half, 8 * half + 8)
    places[:, kind] = np.roll(places[:, kind], 1, axis=1)
    spoilt = msgspec.structs.replace(mine.survey, places=places.tobytes())
    assert live(mine, spoilt.expert_count, spoilt).error(mine.reference) > CAUGHT


def _all_text(images: RowImages) -> RowImages:
    return replace(images, types={name: torch.zeros_like(each) for name, each in images.types.items()})


def _types_one_place_off(images: RowImages) -> RowImages:
    return replace(images, types={name: each.roll(1) for name, each in images.types.items()})


def _marks_are_text(images: RowImages) -> RowImages:
    return replace(images, types={name: images.shown.long() for name in images.types})


def _shuffled_features(images: RowImages) -> RowImages:
    pixels = images.inputs["pixel_values"]
    return replace(images, inputs=images.inputs | {"pixel_values": pixels.flip(0)})


@pytest.mark.parametrize(
    ("family", "spoil"),
    [
        *((ERNIE, spoil) for spoil in (_all_text, _types_one_place_off, _marks_are_text)),
        *((family, _shuffled_features) for family in VISION_FAMILIES),
    ],
)
def test_wrong_types_or_features_would_be_noticed(
    family: str,
    spoil: Callable[[RowImages], RowImages],
    ready: Callable[[str], Ready],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = ready(family)

    def spoilt(model: Any, row: RequestRow, folder: Path | None) -> RowImages | None:
        found = read_images(model, row, folder)
        return found and spoil(found)

    monkeypatch.setattr(executor, "read_images", spoilt)
    assert live(mine, mine.survey.expert_count).error(mine.reference) > CAUGHT
