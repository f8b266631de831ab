"""What `Kimi_K25ImageProcessor` makes of small images, without torchvision, which the library's own needs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

NEEDS = "torchvision"


def torchvision_works() -> bool:
    """Whether it is there and fits the torch that is: PyPI's does not run beside a CPU's torch."""
    try:
        importlib.import_module(NEEDS)
    except (ImportError, RuntimeError):
        return False
    return True


class KimiImages:
    """Images are never made larger, and those of the tests need not be smaller: they are only padded."""

    def __init__(self, patch_size: int, merge_size: int) -> None:
        self._patch, self._merge = patch_size, merge_size

    def save_pretrained(self, folder: Path) -> None:
        """As a published folder has it."""
        sizes = {"patch_size": self._patch, "merge_size": self._merge, "size": {"max_height": 64, "max_width": 64}}
        values: dict[str, Any] = {"image_processor_type": "Kimi_K25ImageProcessor", **sizes}
        (folder / "preprocessor_config.json").write_text(json.dumps(values))

    def __call__(self, images: list[Image], return_tensors: str) -> dict[str, torch.Tensor]:
        patches, grids = zip(*map(self._patches, images), strict=True)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}

    def _patches(self, image: Image) -> tuple[torch.Tensor, list[int]]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        factor = self._patch * self._merge
        height, width = pixels.shape[1:]
        padded = torch.nn.functional.pad(pixels, (0, -width % factor, 0, -height % factor)) / 127.5 - 1
        rows, columns = (extent // self._patch for extent in padded.shape[1:])
        parts = padded.view(3, rows, self._patch, columns, self._patch).permute(1, 3, 0, 2, 4)
        return parts.reshape(rows * columns, 3, self._patch, self._patch), [1, rows, columns]
