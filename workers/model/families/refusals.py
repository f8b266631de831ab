"""Configurations that cannot be run exactly, and why."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ....errors import CheckpointError

NOT_DISPATCHED = {
    "doge": "its experts are single rows of two embeddings, retrieved by keys, not modules to load one by one",
    "longcat_flash": "its routers also choose experts that compute nothing, outside of transformers' experts interface",
    "step3p7": "its experts are not dispatched through transformers' experts interface",
}
"""Families with routed experts that do not run: model type -> reason."""


def refuse_by_name(config: PreTrainedConfig) -> None:
    """Raise CheckpointError for a configuration that is known not to work."""
    policy = getattr(config, "second_expert_policy", "all")
    if policy != "all":
        what = f"second_expert_policy '{policy}' draws a token's second expert at random, so no two runs are equal"
        raise CheckpointError(what, "config.json", 'Set it to "all", as published NLLB-MoE models have it')
