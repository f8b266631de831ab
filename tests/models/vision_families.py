"""The tiny configuration of every family that takes images, and the settings of its image processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from expertflow.tests.models.families import _COMMON, _MLA, LINEAR_ATTENTION
from expertflow.tests.models.kimi_images import NEEDS, KimiImages
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PATCH, MERGE = 4, 2
WIDE = 980
"""Pixels of every image of Aria's, whatever its image processor says."""

_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "initializer_range": 0.2,
}
_QWEN_VISION = _VISION | {"out_hidden_size": _COMMON["hidden_size"], "temporal_patch_size": 2}
_PIXELS: dict[str, Any] = {
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 64, "longest_edge": 1024},
}


def _tokens_by_grid(made: dict[str, torch.Tensor]) -> list[int]:
    return (made["image_grid_thw"].prod(-1) // MERGE**2).tolist()


def _m_rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


@dataclass(frozen=True)
class VisionFamily:
    """Settings over the library's own defaults."""

    text: dict[str, Any]
    vision: dict[str, Any]
    image_processor: Any
    """Its class."""
    pixels: dict[str, Any] = field(default_factory=lambda: _PIXELS)
    """Of the image processor."""
    whole: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    """A library that its image processor cannot do without."""
    processor: dict[str, Any] = field(default_factory=dict)
    """What processor_config.json says besides."""
    tokens: Callable[[dict[str, torch.Tensor]], list[int]] = _tokens_by_grid
    """How many positions each image takes, from what the image processor made."""


FAMILIES: dict[str, VisionFamily] = {
    "qwen3_vl_moe": VisionFamily(
        text={
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "head_dim": 16,
            "rope_parameters": _m_rope(4, 2, 2),
        },
        vision=_QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        image_processor=Qwen2VLImageProcessorPil,
    ),
    "glm4v_moe": VisionFamily(
        text={
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "head_dim": 16,
            "first_k_dense_replace": 1,
            "rope_parameters": _m_rope(2, 1, 1, partial_rotary_factor=0.5),
        },
        vision=_QWEN_VISION | {"image_size": 32},
        image_processor=Glm4vImageProcessorPil,
    ),
    "qwen3_5_moe": VisionFamily(
        text=LINEAR_ATTENTION | {"rope_parameters": _m_rope(2, 1, 1, partial_rotary_factor=0.5)},
        vision=_QWEN_VISION | {"num_position_embeddings": 64},
        image_processor=Qwen2VLImageProcessorPil,
    ),
    "ernie4_5_vl_moe": VisionFamily(
        text={
            "hidden_size": 64,
            "moe_num_experts": 8,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [32, 16],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "rope_parameters": _m_rope(3, 3, 2),
        },
        vision=_VISION,
        image_processor=Ernie4_5_VLMoeImageProcessorPil,
        pixels=_PIXELS | {"temporal_patch_size": 1},
    ),
    "aria": VisionFamily(
        text={"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 1},
        vision={
            "model_type": "idefics3_vision",
            "initializer_range": 0.2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": WIDE,
            "patch_size": WIDE // 7,
        },
        image_processor=AriaImageProcessorPil,
        pixels={"max_image_size": WIDE, "min_image_size": WIDE // 3},
        whole={"projector_patch_to_query_dict": {7 * 7: 4}, "initializer_range": 0.2},
        processor={"size_conversion": {str(WIDE): 4}},
        tokens=lambda made: [4] * len(made["pixel_values"]),
    ),
    "kimi_k25": VisionFamily(
        text=_MLA | {"model_type": "deepseek_v3", "routed_scaling_factor": 1.5},
        vision={
            "patch_size": PATCH,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "merge_kernel_size": [MERGE, MERGE],
            "initializer_range": 0.2,
        },
        image_processor=KimiImages,
        pixels={"patch_size": PATCH, "merge_size": MERGE},
        whole={"projection_hidden_size": 32, "initializer_range": 0.2, "tie_word_embeddings": False},
        needs=NEEDS,
    ),
    "qwen4_exp": VisionFamily(
        text=LINEAR_ATTENTION
        | {
            "layer_types": [*LINEAR_ATTENTION["layer_types"][:3], "indexed_attention"],
            "hc_lowrank": 8,
            "indexer_budget": 12,
            "indexer_compress_ratio": 4,
            "indexer_head_dim": 16,
            "indexer_kv_heads": 1,
            "indexer_n_heads": 16,
            "rope_parameters": _m_rope(2, 1, 1, partial_rotary_factor=0.5),
        },
        vision=_QWEN_VISION | {"num_position_embeddings": 64},
        image_processor=Qwen2VLImageProcessorPil,
    ),
}
