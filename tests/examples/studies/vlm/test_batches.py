"""Packed training rows give each question the logits that it has alone, and patches are those of the processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.examples.studies.scenes.drawing import draw_scene
from expertflow.examples.studies.scenes.layout import training_scene
from expertflow.examples.studies.vlm.architectures import ARCHITECTURES, PIXELS
from expertflow.examples.studies.vlm.batches import IGNORED, Batch, BatchSource, to_patches
from expertflow.examples.studies.vlm.training import new_model
from expertflow.examples.studies.vlm.vocabulary import END_ID, EOS_ID, IMAGE_ID, START_ID, build_tokenizer


@pytest.fixture(scope="module")
def batch() -> Batch:
    return BatchSource(build_tokenizer(), rows=2, seed=3).draw()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patches_are_those_of_the_image_processor(architecture: str) -> None:
    image = draw_scene(training_scene(np.random.default_rng(1)))
    made = ARCHITECTURES[architecture].image_processor(**PIXELS)(images=[image], return_tensors="pt")
    assert torch.equal(made["pixel_values"], to_patches(np.asarray(image)[None]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_question_is_computed_as_if_it_were_alone(architecture: str, batch: Batch) -> None:
    model = new_model(architecture, len(build_tokenizer()), seed=0).eval()
    with torch.no_grad():
        packed = model(**batch.model_inputs()).logits[1]
        kept = (batch.questions[1] == 0) | (batch.questions[1] == 2)
        ids = batch.ids[1][kept][None]
        alone = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_ID).int()}
        if architecture == "ernie4_5_vl_moe":
            marks = (ids == START_ID) | (ids == END_ID)
            alone["moe_mm_token_type_ids"] = ((ids == IMAGE_ID) | marks).int()
        grid = batch.model_inputs()["image_grid_thw"][:1]
        single = model(**alone, pixel_values=batch.patches[len(batch.patches) // 2 :], image_grid_thw=grid).logits[0]
    assert torch.allclose(packed[kept], single, atol=1e-5) and single.abs().max() > 0.1


def test_only_answers_are_learned(batch: Batch) -> None:
    tokenizer = build_tokenizer()
    learned = batch.labels != IGNORED
    assert torch.equal(batch.labels[:, :-1][learned[:, :-1]], batch.ids[:, 1:][learned[:, :-1]])
    words = [word.strip() for word in tokenizer.batch_decode(batch.labels[learned][:, None])]
    assert words.count("</s>") >= 8 and "?" not in words
    ends = (batch.ids == EOS_ID).sum() - (batch.ids[:, 0] == EOS_ID).sum()
    assert words.count("</s>") == int(ends)


def test_the_tokenizer_keeps_names_whole_and_gives_texts_back() -> None:
    tokenizer = build_tokenizer()
    text = "Is there an orange square in the image?\nA. red star Yes, there is."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert " orange square" in tokenizer.convert_ids_to_tokens(ids)  # pyright: ignore[reportOperatorIssue]
    assert tokenizer.encode("zebra", add_special_tokens=False) == [tokenizer.unk_token_id]
