"""The small vision-language models: one configuration and one image processor for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..scenes.layout import SIZE
from .vocabulary import EOS_ID, IMAGE_ID

PATCH, MERGE = 8, 2
IMAGE_TOKENS = (SIZE // PATCH // MERGE) ** 2
EXPERTS, TOP_K, WIDTH = 16, 2, 48
HIDDEN, VISION_HIDDEN = 128, 96
_INIT = 0.06

_TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 1024,
    "initializer_range": _INIT,
    "rms_norm_eps": 1e-5,
}
_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": 192,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "initializer_range": _INIT,
}
_QWEN_VISION = _VISION | {"out_hidden_size": HIDDEN, "temporal_patch_size": 1}
PIXELS: dict[str, Any] = {
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": 1,
    "size": {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""Settings of each image processor: every image is scaled to SIZE × SIZE pixels in area."""


def _m_rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


@dataclass(frozen=True)
class Architecture:
    """Settings over the library's own defaults."""

    title: str
    routing: str
    """How its text layers choose experts, in words."""
    text: dict[str, Any]
    vision: dict[str, Any]
    image_processor: Callable[..., Any]
    whole: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3_vl_moe": Architecture(
        title="Qwen3-VL-MoE",
        routing="soft: any expert for any token",
        text={
            "num_experts": EXPERTS,
            "num_experts_per_tok": TOP_K,
            "moe_intermediate_size": WIDTH,
            "head_dim": 32,
            "rope_parameters": _m_rope(8, 4, 4),
        },
        vision=_QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        image_processor=Qwen2VLImageProcessorPil,
    ),
    "ernie4_5_vl_moe": Architecture(
        title="Ernie 4.5 VL",
        routing="hard: separate routers and experts for text and images",
        text={
            "moe_num_experts": EXPERTS // 2,
            "moe_k": TOP_K,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [WIDTH, WIDTH],
            "mlp_layer_types": ["sparse"] * 4,
            "head_dim": 32,
            "rope_parameters": _m_rope(6, 6, 4),
        },
        vision=_VISION | {"hidden_size": 80, "intermediate_size": 160},
        image_processor=Ernie4_5_VLMoeImageProcessorPil,
    ),
    "glm4v_moe": Architecture(
        title="GLM-4V-MoE",
        routing="soft: sigmoid scores, and one expert that every token uses",
        text={
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "num_experts_per_tok": TOP_K,
            "moe_intermediate_size": WIDTH,
            "first_k_dense_replace": 0,
            "head_dim": 32,
            "rope_parameters": _m_rope(4, 2, 2, partial_rotary_factor=0.5),
        },
        vision=_QWEN_VISION | {"image_size": SIZE},
        image_processor=Glm4vImageProcessorPil,
    ),
}


def model_config(architecture: str, vocabulary: int, **text: Any) -> PreTrainedConfig:
    """Return the configuration for a vocabulary of so many tokens; `text` overrides settings of the text side."""
    own = ARCHITECTURES[architecture]
    settings = _TEXT | {"vocab_size": vocabulary, "eos_token_id": EOS_ID, "pad_token_id": 0} | own.text | text
    cls: Any = CONFIG_MAPPING[architecture]
    config = cls(text_config=settings, vision_config=own.vision, **own.whole)
    config.image_token_id, config.video_token_id = IMAGE_ID, IMAGE_ID + 1
    config.tie_word_embeddings = False
    config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[architecture]]
    return config
