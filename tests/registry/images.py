"""Which models of the experts registry take images in transformers, and why some do not here."""

from __future__ import annotations

from expertflow.tests.registry.enumeration import modules
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

_TORCHVISION = "its image processor needs torchvision, which seldom is beside a CPU's torch: not tried"
_UNTRIED = "not tried"

NO_IMAGES: dict[str, str] = {
    "deepseek_ocr2": "its vision part is two towers in nested configurations, of which no small copy can be made yet",
    "diffusion_gemma": "a diffusion model, which does not write token after token",
    "dots3_note": "its text runs; images and sound go through one processor: not tried",
    "gemma4": "its text runs; positions of an image see each other both ways: not tried",
    "glm5_next": "not tried, nor is its text part",
    "inkling2": f"its text runs as `inkling2_text`; {_TORCHVISION}",
    "inkling_mm_model": f"its text runs as `inkling_text`; {_TORCHVISION}",
    "minimax_m3_vl": f"its text runs as `minimax_m3_vl_text`; {_TORCHVISION}",
    "mistral4": _UNTRIED,
    "mistral_large4": _UNTRIED,
    "muse_spark": _TORCHVISION,
    "qwen3_omni_moe_thinker": "published as a part of a model that also speaks, and only whole checkpoints are read",
    "unlimited_ocr": _TORCHVISION,
}
"""By model type."""


def image_types() -> set[str]:
    """Model types whose own module has experts of the interface, and that transformers calls image-text-to-text."""
    return {
        each for types in modules().values() for each in types if each in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    }
