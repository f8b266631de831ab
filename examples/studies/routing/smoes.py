"""The training loss of SMoES (arXiv 2604.23996) in our own words: experts specialise by modality, softly.

A token's modality score comes from two Gaussians of hidden states, one for text and one for images. Experts are sorted
by the share of image tokens among what they get and cut into bins of equal size. The loss rewards mutual information
between modality and bin, and balances experts within each bin alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..vlm.batches import Batch
from ..vlm.routers import RouterRecorder

BINS = 4
BALANCE, INFORMATION = 0.01, 0.02
"""Weights of the two terms. The paper has .001 and .0001 over many more steps."""
DECAY = 0.99
MODALITIES = 2
"""0: text, 1: image."""


@dataclass
class RunningGaussian:
    """Mean and variance [modalities, width] of hidden states, each batch forgotten with DECAY."""

    mean: torch.Tensor
    variance: torch.Tensor
    batches: int = 0

    def update(self, hidden: torch.Tensor, modality: torch.Tensor) -> None:
        """Take in hidden states [tokens, width] with their modality [tokens]."""
        for kind in range(MODALITIES):
            own = hidden[modality == kind]
            if len(own) < 2:
                continue
            keep = DECAY if self.batches else 0.0
            shift = own.mean(0) - self.mean[kind]
            spread = own.var(0, unbiased=False) + keep * shift.square()
            self.mean[kind] += (1 - keep) * shift
            self.variance[kind] = keep * self.variance[kind] + (1 - keep) * spread
        self.batches += 1

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return modality scores [tokens, modalities]: softmax of the log-likelihoods over half the width."""
        variance = self.variance.clamp_min(1e-6)
        distance = (hidden[:, None] - self.mean).square() / variance + variance.log()
        return (-0.5 * distance.sum(-1) / (0.5 * hidden.shape[-1])).softmax(-1)


class SmoesLoss:
    """The loss of a model's layers; keeps the Gaussians and the counts behind the bins between steps."""

    def __init__(self, layers: int, experts: int, width: int) -> None:
        zeros, ones = torch.zeros(MODALITIES, width), torch.ones(MODALITIES, width)
        self._gaussians = [RunningGaussian(zeros.clone(), ones.clone()) for _ in range(layers)]
        self.counts = torch.ones(layers, MODALITIES, experts)
        """Running counts of tokens by layer, modality and expert."""

    def __call__(self, recorder: RouterRecorder, batch: Batch) -> torch.Tensor:
        """Return the loss of the last forward, added over the layers."""
        modality = batch.of_images.flatten().long()
        total = torch.zeros(())
        layers = zip(recorder.inputs, recorder.logits, recorder.chosen, strict=True)
        for layer, (hidden, logits, chosen) in enumerate(layers):
            gates = logits.softmax(-1)
            scores = self._modality_scores(layer, hidden.detach(), modality)
            bins = self._update_bins(layer, chosen, modality)
            information = mutual_information(scores, gates, bins, rows=len(batch.ids))
            total = total + BALANCE * bin_balance(gates, chosen, bins) - INFORMATION * information
        return total

    def _modality_scores(self, layer: int, hidden: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        self._gaussians[layer].update(hidden, modality)
        return self._gaussians[layer].scores(hidden)

    def _update_bins(self, layer: int, chosen: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        experts = self.counts.shape[-1]
        for kind in range(MODALITIES):
            fresh = torch.bincount(chosen[modality == kind].flatten(), minlength=experts)
            self.counts[layer, kind] = DECAY * self.counts[layer, kind] + (1 - DECAY) * fresh
        return expert_bins(self.counts[layer])


def expert_bins(counts: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    """Return int64 [experts], the bin of each expert: sorted by the share of text among its tokens, cut evenly.

    `counts`: [modalities, experts].
    """
    text_share = counts[0] / counts.sum(0).clamp_min(1e-9)
    rank = text_share.argsort(stable=True).argsort(stable=True)
    return rank * bins // len(rank)


def mutual_information(scores: torch.Tensor, gates: torch.Tensor, bins: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the mean over the rows of I(modality; bin) in nats.

    `scores` [tokens, modalities], `gates` [tokens, experts]; the tokens of a row stand together. The joint distribution
    of a row is the gate that its tokens of a modality give to a bin, each modality weighted alike.
    """
    members = torch.nn.functional.one_hot(bins, int(bins.max()) + 1).to(gates.dtype)
    by_bin = (gates @ members).view(rows, -1, members.shape[1])
    weights = scores.view(rows, -1, MODALITIES)
    joint = torch.einsum("rtm,rtb->rmb", weights, by_bin) / weights.sum(1).clamp_min(1e-9)[:, :, None]
    joint = joint / joint.sum((1, 2), keepdim=True)
    independent = joint.sum(1, keepdim=True) * joint.sum(2, keepdim=True)
    return (joint * (joint.clamp_min(1e-12) / independent.clamp_min(1e-12)).log()).sum((1, 2)).mean()


def bin_balance(gates: torch.Tensor, chosen: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Return Switch's balancing term within each bin, the mean over bins; 1 if each bin uses its experts evenly."""
    experts = gates.shape[-1]
    used = torch.bincount(chosen.flatten(), minlength=experts).to(gates.dtype)
    mean_gate = gates.mean(0)
    terms = []
    for number in range(int(bins.max()) + 1):
        own = bins == number
        share = used[own] / used[own].sum().clamp_min(1e-9)
        probability = mean_gate[own] / mean_gate[own].sum().clamp_min(1e-9)
        terms.append(own.sum() * (share * probability).sum())
    return torch.stack(terms).mean()
