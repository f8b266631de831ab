"""Training of gates on the hidden states of a trace, and their recall.

Pregated-MoE (arXiv 2308.12066) trains its gates together with the model; here the model stays unchanged.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ...errors import UsageError
from ..predictor.base.training_end import EndReason
from ..traces.folder import read_header
from ..traces.reading import read_hidden
from .examples import Examples, split_examples
from .files import GateFacts, save_gates
from .network import Gates

MIN_TOKENS = 1000
VALIDATION_SHARE = 0.1
"""Share of the sequences that decides when training stops."""
ReportProgress = Callable[[str, int, int], None]
"""Called with a name, the work done and the work in total."""
Ranker = Callable[[int, torch.Tensor, int], np.ndarray | None]
"""Function like `Gates.ranking`: (layer, hidden [tokens, width], depth) -> int64 [tokens, depth]."""
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Options of training."""

    bottleneck: int = 128
    epochs: int = 12
    """Most epochs; the learning rate falls to 0 over them."""
    patience: int = 3
    """Epochs without a gain after which training stops."""
    minutes: float = 10.0
    """No epoch begins later than this."""
    batch_tokens: int = 256
    learning_rate: float = 4e-3
    held_out: float = 0.2
    """Share of the sequences that only judge the gates."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """Result of training. Recall is float64 [layers - 1], of held out sequences, for MoE layers from 1 on."""

    tokens: int
    epochs: int
    ended_by: EndReason
    recall_at_k: np.ndarray
    recall_at_2k: np.ndarray
    held_out_tokens: int


def train_gates(
    folder: Path, out: Path | None, options: GateOptions | None = None, progress: ReportProgress | None = None
) -> GateReport:
    """Train on the hidden states of the trace in `folder`, write `out` if given, and judge.

    Raises UsageError if the trace has too few hidden states, or if the file cannot be written.
    """
    options = options or GateOptions()
    header = read_header(folder)
    trace, hidden = read_hidden(folder)
    validation, held_out, training = split_examples(trace, hidden, (VALIDATION_SHARE, options.held_out), options.seed)
    if len(training) < MIN_TOKENS or not len(validation) or not len(held_out):
        what = f"has hidden states of {len(hidden.tokens):,} tokens, too few to learn from"
        raise UsageError(what, str(folder), "Trace more prompts, or a larger share: --hidden 1")
    facts = GateFacts(
        fingerprint=header.fingerprint,
        layers=header.layers,
        experts=header.experts,
        top_k=header.top_k,
        width=hidden.states.shape[2],
        bottleneck=options.bottleneck,
    )
    gates, epochs, ended_by = fit(facts, training, validation, options, progress or _no_progress)
    if out is not None:
        save_gates(gates, facts, out)
    depths = (header.top_k, min(2 * header.top_k, header.experts))
    recall = recall_at(held_out, gates.ranking, depths)
    return GateReport(
        tokens=len(training),
        epochs=epochs,
        ended_by=ended_by,
        recall_at_k=recall[:, 0],
        recall_at_2k=recall[:, 1],
        held_out_tokens=len(held_out),
    )


def recall_at(examples: Examples, ranking: Ranker, depths: Sequence[int]) -> np.ndarray:
    """Return float64 [L - 1, depths]: for MoE layers 1 to L - 1 the share of chosen experts among the first `depth`."""
    found = np.zeros((examples.routes.shape[1] - 1, max(depths)))
    for start in range(0, len(examples), TOKENS_AT_ONCE):
        piece = slice(start, start + TOKENS_AT_ONCE)
        for gate in range(len(found)):
            ranked = ranking(gate, examples.states[piece, gate].float(), max(depths))
            if ranked is not None:
                chosen = examples.routes[piece, gate + 1].numpy()
                found[gate] += (ranked[:, :, None] == chosen[:, None, :]).any(axis=2).sum(axis=0)
    shares = found.cumsum(axis=1) / max(examples.routes[:, 0].numel(), 1)
    return shares[:, [depth - 1 for depth in depths]]


def fit(
    facts: GateFacts, training: Examples, validation: Examples, options: GateOptions, progress: ReportProgress
) -> tuple[Gates, int, EndReason]:
    """Return the gates that do best on `validation`, the number of epochs, and why training ended."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return _fit(facts, training, validation, options, progress)


def _fit(
    facts: GateFacts, training: Examples, validation: Examples, options: GateOptions, progress: ReportProgress
) -> tuple[Gates, int, EndReason]:
    gates = facts.make()
    best, best_loss, best_epoch, epoch = copy.deepcopy(gates.state_dict()), float("inf"), 0, 0
    deadline_s = time.monotonic() + 60 * options.minutes
    optimizer = torch.optim.AdamW(gates.parameters(), lr=options.learning_rate, weight_decay=1e-2)
    while epoch < options.epochs and epoch - best_epoch < options.patience and time.monotonic() < deadline_s:
        progress("training gates", epoch, options.epochs)
        epoch += 1
        _train_epoch(gates, optimizer, training, options.batch_tokens)
        loss = _mean_loss(gates, validation)
        if loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(gates.state_dict()), loss, epoch
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 - epoch / options.epochs)
    progress("training gates", options.epochs, options.epochs)
    gates.load_state_dict(best)
    reason: EndReason = "epochs" if epoch >= options.epochs else "time"
    ended_by = "no gain" if epoch - best_epoch >= options.patience else reason
    return gates.requires_grad_(False).eval(), epoch, ended_by


def _train_epoch(gates: Gates, optimizer: torch.optim.Optimizer, training: Examples, batch_tokens: int) -> None:
    for indices in torch.randperm(len(training)).split(batch_tokens):
        optimizer.zero_grad()
        _loss(gates, training, indices).backward()
        optimizer.step()


@torch.inference_mode()
def _mean_loss(gates: Gates, examples: Examples) -> float:
    batches = torch.arange(len(examples)).split(4096)
    return sum(float(_loss(gates, examples, indices)) * len(indices) for indices in batches) / len(examples)


def _loss(gates: Gates, examples: Examples, indices: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each expert, chosen or not (it gave better gates than a softmax over all)."""
    scores = gates(examples.inputs(indices))
    chosen = torch.zeros_like(scores).scatter_(2, examples.targets(indices), 1.0)
    return binary_cross_entropy_with_logits(scores, chosen)


def _no_progress(what: str, done: int, total: int) -> None:
    """Stand in for a caller that does not watch."""
