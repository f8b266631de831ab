"""What a client makes of an image prompt: ids and inputs as transformers' own parts make them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from expertflow import ImagePrompt
from expertflow.errors import CheckpointError, RequestError, UsageError
from expertflow.ipc.attachments import FOLDER, TOKEN_TYPES
from expertflow.runtime.commands.prompt_lines import PromptLine, with_images
from expertflow.runtime.images import ImageDesk
from safetensors.torch import load

from tests.families import save_tiny
from tests.vision import IMAGE, VISION_FAMILIES, VisionReference, image_prompts, picture, save_vision

TEMPLATE = (
    "{% for message in messages %}w90 {% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %} w91"
)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_ids_types_and_pixels_are_those_of_the_models_own_parts(family: str, tmp_path: Path) -> None:
    save_vision(family, tmp_path)
    desk, reference = ImageDesk(str(tmp_path)), VisionReference(tmp_path)
    for prompt in [each for each in image_prompts() if isinstance(each, ImagePrompt)]:
        ids, content = desk.read(prompt, str(tmp_path))
        expected = {name: tensor for name, tensor in reference.inputs(prompt).items() if name != "attention_mask"}
        assert ids == expected.pop("input_ids")[0].tolist()
        made = load(content)
        expected |= {name: expected[name][0] for name in expected if name.endswith("token_type_ids")}
        assert TOKEN_TYPES in made
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in made)


def test_a_text_without_placeholders_becomes_a_turn_of_the_chat_template(tmp_path: Path) -> None:
    save_vision("qwen3_vl_moe", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    desk, image = ImageDesk(str(tmp_path)), picture(16, 16, 0)
    rendered = desk.read(ImagePrompt("w1 w2", [image]), str(tmp_path))
    assert rendered == desk.read(ImagePrompt(f"w90 {IMAGE} w1 w2 w91", [image]), str(tmp_path))
    with pytest.raises(RequestError, match="1 image placeholders for 2 images"):
        desk.read(ImagePrompt(f"w1 {IMAGE}", [image, image]), str(tmp_path))


def test_a_model_without_images_says_so(tmp_path: Path) -> None:
    save_tiny("olmoe", tmp_path)
    with pytest.raises(UsageError, match="takes no images"):
        ImageDesk(str(tmp_path)).read(ImagePrompt("w1", [picture(16, 16, 0)]), str(tmp_path))
    assert not (tmp_path / FOLDER).exists()


def test_a_missing_processor_is_the_checkpoints_fault(tmp_path: Path) -> None:
    save_vision("qwen3_vl_moe", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot load its processor"):
        ImageDesk(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"Pillow.*expertflow-runtime\[vision\]"):
        ImageDesk(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))


def test_images_of_the_command_line_belong_to_one_prompt_of_text(tmp_path: Path) -> None:
    one, two = PromptLine("w1", "--prompt 1"), PromptLine("w2", "--prompt 2")
    assert with_images([one, two], []) == [one, two]
    for lines in ([one, two], [PromptLine([1, 2], "--prompt 1")]):
        with pytest.raises(UsageError, match="single prompt of text"):
            with_images(lines, [tmp_path / "one.png"])
    with pytest.raises(UsageError, match=r"one\.png"):
        with_images([one], [tmp_path / "one.png"])
