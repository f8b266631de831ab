"""DeepFM, DCN and DCN-V2 (plain, and its mixture of low-rank experts) of torch-rechub, over our fields."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .fields import HISTORY_FIELD, ITEM_FIELD, Batch, FieldTable

EMBEDDING = 16
LAYERS = [256, 128]
CROSS_LAYERS = 3
MIX_EXPERTS = (1, 2, 4, 8)
"""Experts of DCN-V2's mixture; its gate is soft, so all of them run for every pair."""
NAMES = ("DeepFM", "DCN", "DCN-V2", "DCN-V2 mix 4")
MIXTURES = tuple(f"DCN-V2 mix {experts}" for experts in MIX_EXPERTS if experts != 4)


def make_model(name: str, table: FieldTable, dropout: float = 0.2) -> nn.Module:
    """Return the model of this name with fresh weights. It maps a batch to probabilities, float [rows]."""
    from torch_rechub.models.ranking import DCN, DCNv2, DeepFM

    features = make_features(table)
    layers: dict[str, Any] = {"dims": list(LAYERS), "activation": "relu", "dropout": dropout}
    if name == "DeepFM":
        return DeepFM(features, features, layers)
    if name == "DCN":
        return DCN(features, CROSS_LAYERS, layers)
    if name == "DCN-V2":
        return DCNv2(features, CROSS_LAYERS, layers, use_low_rank_mixture=False)
    experts = int(name.rpartition(" ")[2])
    return MixtureOfOneRow(DCNv2(features, CROSS_LAYERS, layers, use_low_rank_mixture=True, num_experts=experts))


class MixtureOfOneRow(nn.Module):
    """DCN-V2's mixture, which in torch-rechub 0.9.0 fails on a batch of one row: that row is scored twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return probabilities, float [rows]."""
        if len(batch[ITEM_FIELD]) > 1:
            return self.model(batch)
        return self.model({name: column.repeat(2, *[1] * (column.dim() - 1)) for name, column in batch.items()})[:1]


def make_features(table: FieldTable) -> list[Any]:
    """Return fresh features. A feature keeps the weights of its first model, so no two models may share one."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature

    features: list[Any] = [SparseFeature(name, size, embed_dim=EMBEDDING) for name, size in table.sizes.items()]
    if table.with_history:
        items = table.sizes[ITEM_FIELD]
        features.append(SequenceFeature(HISTORY_FIELD, items, EMBEDDING, "mean", ITEM_FIELD, padding_idx=0))
    return features


def embeddings_of(model: nn.Module) -> list[Tensor]:
    """Return the weights of all embedding tables."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
