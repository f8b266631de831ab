"""Prompts with images, and their preprocessing in the client.

The model's own processor turns text and images into token ids and inputs of the model. The ids go with the request. The
inputs go into a file of the run directory, which compute reads at each prefill of the row.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import RequestError, UsageError
from ...ipc.shared.attachments import TOKEN_TYPES, Attachments, is_of_positions
from .processor import EXTRA, load_processor

if TYPE_CHECKING:
    from PIL.Image import Image

_UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, RuntimeError, struct.error, Warning)
"""Errors that Pillow's readers raise at damaged files."""


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A text with images, given as paths or as the bytes of image files (PNG, JPEG and what else
    Pillow reads).

    The text holds the model's image placeholder once for each image. Without placeholders the model's chat template
    renders it as a user's message with the images before the text.
    """

    text: str
    images: Sequence[str | Path | bytes]


class ImagePreprocessor:
    """Preprocessing of one client's image prompts; the processor is loaded at the first one."""

    def __init__(self, run_dir: str) -> None:
        self._attachments = Attachments(Path(run_dir))
        self._loaded: Any = None

    def read(self, prompt: ImagePrompt, folder: str) -> tuple[list[int], bytes]:
        """Return token ids, image positions included, and the content of the attachment, for the model in `folder`.

        Raises UsageError or RequestError for images that cannot be read, CheckpointError for a broken processor.
        """
        if not prompt.images:
            raise RequestError("has no images", "prompt", "Give the text alone")
        images = [_open(image, number) for number, image in enumerate(prompt.images, 1)]
        if self._loaded is None:
            self._loaded = load_processor(folder)
        return _encode(self._loaded, prompt.text, images)

    def keep(self, content: bytes) -> str:
        """Write an attachment into the run directory and return its name. Raises BudgetError if there is no room."""
        return self._attachments.put(content)

    def remove(self, name: str) -> None:
        """Remove the attachment of a request that has ended."""
        self._attachments.remove(name)

    def close(self) -> None:
        """Remove all attachments."""
        self._attachments.close()


def _encode(processor: Any, text: str, images: list[Image]) -> tuple[list[int], bytes]:
    from safetensors.numpy import save

    text = _with_placeholders(processor, text, len(images))
    bos = processor.tokenizer.bos_token
    options = {"add_special_tokens": False} if bos and text.startswith(bos) else {}  # of a chat template
    try:
        inputs = processor(text=[text], images=images, return_tensors="np", return_mm_token_type_ids=True, **options)
    except (ValueError, TypeError, LookupError, ZeroDivisionError) as error:
        what = f"the model's processor refuses it ({error})"
        raise RequestError(what, "prompt", "Check the images' sizes and the placeholders in the text") from error
    _require_apart(inputs, len(images))
    kept = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    arrays = {name: array[0] if is_of_positions(name) else array for name, array in kept.items()}
    return inputs["input_ids"][0].tolist(), save(arrays)


def _require_apart(inputs: Any, count: int) -> None:
    """Raise RequestError if a model that finds its images by runs of their positions would find too few.

    Those with a grid of patches for each image do so (Qwen2-VL to Qwen3-VL, GLM-4V, …), in transformers, too.
    """
    if "image_grid_thw" not in inputs or TOKEN_TYPES not in inputs:
        return
    is_image = np.concatenate([[False], inputs[TOKEN_TYPES][0] == 1])
    if int((is_image[1:] & ~is_image[:-1]).sum()) < count:
        what = "has image placeholders side by side, which this model takes for one image"
        raise RequestError(what, "prompt", "Put text between them, or the model's markers around each")


def _with_placeholders(processor: Any, text: str, count: int) -> str:
    found = text.count(processor.image_token)
    if found == count:
        return text
    if found or not processor.chat_template:
        what = f"has {found} image placeholders for {count} images"
        raise RequestError(what, "prompt", f"Write {processor.image_token} in the text once for each image")
    content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _open(image: str | Path | bytes, number: int) -> Image:
    """Return the decoded image, upright and in RGB, as transformers would load it."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise UsageError("need the library Pillow, which is not installed", "images", EXTRA) from error
    where = f"image {number}" if isinstance(image, bytes) else str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return PIL.ImageOps.exif_transpose(opened).convert("RGB")
    except (*_UNREADABLE, PIL.Image.DecompressionBombError) as error:
        reason = "its format is not known" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise RequestError(f"cannot be read as an image ({reason})", where, "Give a PNG or JPEG file") from error
