"""Rows with images on a (fake) device, beside rows without: tokens of transformers' `generate` (I1b)."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import ImagePrompt
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.ipc.shared.attachments import FOLDER
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.vision import VisionReference, image_prompts, read_prompt, save_vision
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 6


def test_rows_with_images_give_the_tokens_of_generate(tmp_path: Path) -> None:
    save_vision("qwen3_vl_moe", tmp_path / "model")
    reference, prompts = VisionReference(tmp_path / "model"), image_prompts()[:4]
    frontend = ImagePreprocessor(str(tmp_path))
    rows = admitted(prompts, reference, frontend)
    assert any(row.attachment for row in rows) and not all(row.attachment for row in rows)
    survey = survey_checkpoint(str(tmp_path / "model"))
    quarter, abilities = survey.expert_count // 4, RowAbilities.of(survey.rows)
    tokens: list[list[int]] = [[] for _ in rows]
    with LocalRuntime(
        survey, quarter, abilities, tier="host", attachments=tmp_path / FOLDER, device=FakeDevice(0)
    ) as runtime:
        for number in range(STEPS):
            stepped, _ = runtime.run(RunStep(number=number, unit=1, admit=rows if number == 0 else []))
            assert not stepped.failed
            for row, token in zip(stepped.rows, stepped.tokens, strict=True):
                tokens[row].append(token)
    frontend.close()
    assert tokens == [reference.greedy(prompt, STEPS) for prompt in prompts]


def admitted(
    prompts: list[ImagePrompt | list[int]], reference: VisionReference, frontend: ImagePreprocessor
) -> list[RequestRow]:
    """As a client submits them."""
    rows = []
    for number, prompt in enumerate(prompts):
        ids, name = prompt, ""
        if isinstance(prompt, ImagePrompt):
            ids, content = read_prompt(frontend, prompt, reference)
            name = frontend.keep(content)
        rows.append(RequestRow(number, list(ids), 0, Sampling(), name))  # pyright: ignore[reportArgumentType]
    return rows
