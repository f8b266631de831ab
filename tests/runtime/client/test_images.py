"""What a client makes of an image prompt: ids and inputs as transformers' own parts make them."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import pytest
import torch
from expertflow import ImagePrompt
from expertflow.errors import CheckpointError, RequestError, UsageError
from expertflow.ipc.shared.attachments import FOLDER, TOKEN_TYPES, is_of_positions
from expertflow.runtime.client.images import ImagePreprocessor
from expertflow.runtime.client.processor import check_images_taken
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.prompt_sources.prompt_lines import PromptLine, with_images
from expertflow.tests.models.families import save_tiny
from expertflow.tests.models.kimi_images import torchvision_works
from expertflow.tests.models.vision import (
    IMAGE,
    IMAGE_ID,
    VISION_FAMILIES,
    VisionReference,
    image_prompts,
    picture,
    save_vision,
    skip_without_processor,
    vision_config,
)
from safetensors.torch import load

TEMPLATE = (
    "{% for message in messages %}w90 {% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %} w91"
)
PIXELS = "pixel_values"


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_ids_types_and_pixels_are_those_of_the_models_own_parts(family: str, tmp_path: Path) -> None:
    skip_without_processor(family)
    save_vision(family, tmp_path)
    frontend, reference = ImagePreprocessor(str(tmp_path)), VisionReference(tmp_path)
    for prompt in [each for each in image_prompts() if isinstance(each, ImagePrompt)]:
        ids, content = frontend.read(prompt, str(tmp_path))
        expected = {name: tensor for name, tensor in reference.inputs(prompt).items() if name != "attention_mask"}
        assert ids == expected.pop("input_ids")[0].tolist()
        made = load(content)
        expected |= {name: expected[name][0] for name in expected if is_of_positions(name)}
        expected[TOKEN_TYPES] = (torch.tensor(ids) == IMAGE_ID).long()
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in made if name != PIXELS)
        assert (made[PIXELS] - expected[PIXELS]).abs().max() <= (1e-6 if reference.needs else 0.0)


def test_a_text_without_placeholders_becomes_a_turn_of_the_chat_template(tmp_path: Path) -> None:
    save_vision("qwen3_vl_moe", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    frontend, image = ImagePreprocessor(str(tmp_path)), picture(16, 16, 0)
    rendered = frontend.read(ImagePrompt("w1 w2", [image]), str(tmp_path))
    assert rendered == frontend.read(ImagePrompt(f"w90 {IMAGE} w1 w2 w91", [image]), str(tmp_path))
    with pytest.raises(RequestError, match="1 image placeholders for 2 images"):
        frontend.read(ImagePrompt(f"w1 {IMAGE}", [image, image]), str(tmp_path))


def test_a_model_without_images_says_so(tmp_path: Path) -> None:
    save_tiny("olmoe", tmp_path)
    with pytest.raises(UsageError, match="takes no images"):
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt("w1", [picture(16, 16, 0)]), str(tmp_path))
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("name", ["generate", "verify"])
def test_images_for_a_model_of_text_are_refused_before_anything_starts(
    name: str, tmp_path: Path, no_process: None
) -> None:
    """Whoever has the wrong folder should not wait for the engine to hear of it."""
    save_tiny("olmoe", tmp_path)
    (tmp_path / "one.png").write_bytes(picture(16, 16, 0))
    words = [name, "--model", str(tmp_path), "--prompt", "w1", "--image", str(tmp_path / "one.png")]
    with pytest.raises(UsageError, match="takes no images") as refused:
        parse(words).run()
    assert refused.value.where == str(tmp_path)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_images_are_taken_where_compute_takes_them(family: str, tmp_path: Path) -> None:
    """The text class of a family with images would refuse them after the start."""
    config = vision_config(family)
    config.save_pretrained(tmp_path)
    check_images_taken(str(tmp_path))
    config.get_text_config().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="takes no images"):
        check_images_taken(str(tmp_path))


@pytest.mark.parametrize("words", [["--image", "a.png"], ["--ids"], ["--format", "xsum"]])
def test_verify_without_a_prompt_has_nothing_to_do_with_options_of_prompts(words: list[str], no_process: None) -> None:
    """Random prompts ran instead, without a word."""
    with pytest.raises(UsageError, match="none is given") as refused:
        parse(["verify", "--model", "m", *words]).run()
    assert refused.value.where == words[0].removeprefix("--")


def test_a_missing_processor_is_the_checkpoints_fault(tmp_path: Path) -> None:
    save_vision("qwen3_vl_moe", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot load its processor"):
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"Pillow.*expertflow-runtime\[vision\]"):
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))


@pytest.mark.skipif(torchvision_works(), reason="torchvision is here, so that none is missing")
def test_a_processor_that_needs_torchvision_names_the_extra(tmp_path: Path) -> None:
    save_vision("kimi_k25", tmp_path)
    with pytest.raises(UsageError, match=r"\(torchvision\).*expertflow-runtime\[torchvision\]") as caught:
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_torchvision_of_another_torch_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    save_vision("qwen3_vl_moe", tmp_path)
    monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", load)
    with pytest.raises(UsageError, match=r"nms does not exist.*expertflow-runtime\[torchvision\]"):
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt(IMAGE, [picture(16, 16, 0)]), str(tmp_path))


def _huge() -> bytes:
    """A picture that says it is 60000 pixels wide and high."""
    image = bytearray(picture(8, 8, 0))
    image[16:24] = struct.pack(">II", 60000, 60000)
    image[29:33] = struct.pack(">I", zlib.crc32(image[12:29]))
    return bytes(image)


NO_IMAGES: dict[str, bytes] = {
    "empty.png": b"",
    "text.jpg": b"This is no picture.",
    "short.png": picture(40, 40, 0)[:1000],
    "broken.png": picture(40, 40, 0).replace(b"IDAT", b"IDXT"),
    "huge.png": _huge(),
    "odd.dds": b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 16, 0, 0) + bytes(44) + bytes(52),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_a_file_that_is_no_image_is_named(name: str, tmp_path: Path) -> None:
    """By its path, or by its number among those given as bytes; before the model's processor is loaded."""
    (tmp_path / name).write_bytes(NO_IMAGES[name])
    frontend, good = ImagePreprocessor(str(tmp_path)), picture(16, 16, 0)
    with pytest.raises(RequestError, match=rf"{name}: cannot be read as an image") as caught:
        frontend.read(ImagePrompt(f"{IMAGE} {IMAGE}", [good, tmp_path / name]), "no folder")
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=r"image 2: cannot be read as an image"):
        frontend.read(ImagePrompt(f"{IMAGE} {IMAGE}", [good, NO_IMAGES[name]]), "no folder")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"{tmp_path.name}: cannot be read as an image \(.*Is a directory"):
        ImagePreprocessor(str(tmp_path)).read(ImagePrompt(IMAGE, [tmp_path]), "no folder")


def test_images_of_the_command_line_belong_to_one_prompt_of_text(tmp_path: Path) -> None:
    one, two = PromptLine("w1", "--prompt 1"), PromptLine("w2", "--prompt 2")
    assert with_images([one, two], []) == [one, two]
    for lines in ([one, two], [PromptLine([1, 2], "--prompt 1")]):
        with pytest.raises(UsageError, match="single prompt of text"):
            with_images(lines, [tmp_path / "one.png"])
    with pytest.raises(UsageError, match=r"one\.png"):
        with_images([one], [tmp_path / "one.png"])
