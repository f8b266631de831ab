"""Configurations that cannot be run exactly, and why."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ....errors import CheckpointError


def refuse_by_name(config: PreTrainedConfig) -> None:
    """Raise CheckpointError for a configuration that is known not to work."""
    policy = getattr(config, "second_expert_policy", "all")
    if policy != "all":
        what = f"second_expert_policy '{policy}' draws a token's second expert at random, so no two runs are equal"
        raise CheckpointError(what, "config.json", 'Set it to "all", as published NLLB-MoE models have it')
