"""Vision-language models through all processes: what transformers' `generate` says with the same images (I1b, I4)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow import Client, Config, ImagePrompt, Supervisor
from expertflow.errors import BudgetError, ExpertFlowError, RequestError
from expertflow.ipc.shared.attachments import FOLDER
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.verify.checks import Verification
from expertflow.tests.models.vision import (
    IMAGE,
    VISION_FAMILIES,
    VisionReference,
    image_prompts,
    picture,
    save_vision,
    skip_without_processor,
)
from expertflow.tests.system.awaiting import await_tokens
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_vl_moe")
    save_vision("qwen3_vl_moe", folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> VisionReference:
    return VisionReference(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Supervisor]:
    config = Config.load(model=folder, expert_memory="25%", batch_size=4, record=str(folder / "record"))
    with Supervisor(config) as engine:
        yield engine


@pytest.fixture
def client(engine: Supervisor) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


def files_of(engine: Supervisor) -> list[str]:
    return sorted(path.name for path in Path(engine.address, FOLDER).glob("*"))


def test_images_and_texts_in_one_batch_give_the_tokens_of_generate(
    engine: Supervisor, client: Client, reference: VisionReference
) -> None:
    """More prompts than rows, so that rows with and without images join a running unit."""
    prompts = image_prompts()
    done = client.generate(prompts, max_new_tokens=10, eos_ids=[])
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 10) for prompt in prompts]
    assert len(files_of(engine)) == 1  # the client's lock
    client.close()
    assert files_of(engine) == []


def test_batch_invariant_rows_with_images_have_the_bits_they_have_alone(
    client: Client, reference: VisionReference, folder: Path
) -> None:
    """I1d: forwards with and without images are interleaved, each with its own image inputs."""
    prompts = image_prompts()
    done = client.generate(prompts, max_new_tokens=6, eos_ids=[], batch_invariant=True)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 6) for prompt in prompts]
    check = Verification(folder / "record", str(folder)).alone()
    assert check is not None and check.holds and "together" in check.detail


def test_rows_with_images_survive_the_death_of_compute(
    engine: Supervisor, client: Client, reference: VisionReference
) -> None:
    """They are computed again from the same files, and nothing that was delivered changes (I4)."""
    prompts = image_prompts()[:3]
    batch = client.submit(prompts, max_new_tokens=60, eos_ids=[])
    await_tokens(batch, 9)
    engine.kill("compute")
    done = batch.results(timeout_s=60)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 60) for prompt in prompts]
    assert max(each.timings.recomputed for each in done) == 1


def test_a_path_an_odd_format_and_other_modes_are_read_as_transformers_does(
    client: Client, reference: VisionReference, tmp_path: Path
) -> None:
    """A path, and a transparent image turned on its side by its EXIF tag."""
    (tmp_path / "one.png").write_bytes(picture(20, 30, 0))
    prompts = [ImagePrompt(f"w1 {IMAGE} w2 w3", [tmp_path / "one.png"]), ImagePrompt(f"{IMAGE} w2", [_turned()])]
    done = client.generate(prompts, max_new_tokens=6, eos_ids=[])
    assert list(done[0].token_ids) == reference.greedy(image_prompts()[0], 6)
    assert len(done[1].prompt_ids) == 1 + (16 // 8) * (32 // 8)


def _turned() -> bytes:
    """An RGBA image of 32 x 16 that is to be shown as 16 x 32."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (32, 16), (200, 10, 10, 128)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.slow
def test_what_ran_with_images_is_verified(client: Client, folder: Path) -> None:
    """Run again from the recording alone: the same bits resident (I1a), and the logits of transformers (I1b)."""
    client.generate(image_prompts()[:3], max_new_tokens=5, eos_ids=[])
    verification = Verification(folder / "record", str(folder))
    assert [verification.resident().holds, verification.float32().holds] == [True, True]


def test_generate_takes_images_from_the_command_line(
    engine: Supervisor, reference: VisionReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [tmp_path / "one.png", tmp_path / "two.png"]
    images[0].write_bytes(picture(40, 16, 1))
    images[1].write_bytes(picture(24, 24, 2))
    prompt = image_prompts()[2]
    assert isinstance(prompt, ImagePrompt)
    command = Generate(prompt=[prompt.text], image=images, address=engine.address, max_new_tokens=3, json=True)
    assert command.run() == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["token_ids"] == reference.greedy(prompt, 3)
    assert answer["prompt"] == {"text": prompt.text, "images": [str(image) for image in images]}


BAD: dict[str, ImagePrompt] = {
    "cannot be read as an image": ImagePrompt(f"w1 {IMAGE}", [b"no image"]),
    "No such file": ImagePrompt(f"w1 {IMAGE}", ["/no/such/image.png"]),
    "0 image placeholders for 1": ImagePrompt("w1", [picture(16, 16, 0)]),
    "side by side": ImagePrompt(f"w1 {IMAGE}{IMAGE} w2", [picture(16, 32, 0), picture(24, 24, 2)]),
    "has no images": ImagePrompt("w1", []),
    "the model's context": ImagePrompt(f"{' w1' * 256} {IMAGE}", [picture(16, 16, 0)]),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_image_fails_alone(engine: Supervisor, client: Client, reference: VisionReference, words: str) -> None:
    good = image_prompts()[0]
    results = client.submit([good, BAD[words]], max_new_tokens=4, eos_ids=[]).results(60, return_errors=True)
    assert isinstance(results[1], RequestError) and words in str(results[1])
    assert not isinstance(results[0], ExpertFlowError)
    assert list(results[0].token_ids) == reference.greedy(good, 4)


def test_images_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    images = client._state._images
    assert images is not None and images._attachments is not None
    monkeypatch.setattr(images._attachments, "_max_bytes", 1000)
    with pytest.raises(BudgetError, match="exceed"):
        client.generate(image_prompts()[:1], max_new_tokens=1)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_each_family_gives_the_tokens_of_generate(family: str, tmp_path: Path) -> None:
    skip_without_processor(family)
    save_vision(family, tmp_path)
    prompts = image_prompts()
    with Supervisor(Config.load(model=tmp_path, expert_memory="25%")) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=10, eos_ids=[])
    reference = VisionReference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 10) for prompt in prompts]
