"""Random models whose constants are drawn too: one that is lost must change a logit."""

from __future__ import annotations

from typing import Any

import torch


def drawn(kind: Any, config: Any, seed: int, dtype: torch.dtype, constants: tuple[str, ...]) -> Any:
    """A resident model of this class, the same for the same seed; parameters whose names end with one of `constants`
    are moved at random. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind._from_config(config, dtype=dtype)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith(constants):
                    tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return model.eval()
