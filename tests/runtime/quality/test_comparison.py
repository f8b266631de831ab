"""Comparison of two models over a text, against what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.errors import UsageError
from expertflow.runtime.quality.comparison import CHUNK_TOKENS, compare_models
from expertflow.tests.models.families import VOCABULARY, save_tiny
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a copy with other experts."""
    original, other = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("other")
    save_tiny("olmoe", original)
    model = AutoModelForCausalLM.from_pretrained(original)
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data += 0.3 * torch.randn_like(layer.mlp.experts.down_proj)
    model.save_pretrained(other)
    return original, other


def token_ids(count: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(2)).tolist()


def test_a_model_does_not_differ_from_itself(folders: tuple[Path, Path]) -> None:
    found = compare_models(folders[0], folders[0], token_ids(100), lambda *progress: None)
    assert (found.tokens, found.mean_kl, found.changed_routes, found.same_top_token) == (63 + 35, 0, 0, 1)
    assert found.perplexity == found.original_perplexity


def test_figures_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    """Rows of unequal length, more than one unit of rows."""
    ids = token_ids(17 * CHUNK_TOKENS + 9)
    found = compare_models(*folders, ids, lambda *progress: None)
    losses, kl, kept, routes = torch.zeros(2), 0.0, 0, 0
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
    top_k = models[0].config.num_experts_per_tok
    for at in range(0, len(ids), CHUNK_TOKENS):
        chunk = torch.tensor([ids[at : at + CHUNK_TOKENS]])
        with torch.no_grad():
            outputs = [model(chunk, output_router_logits=True) for model in models]
        logs = [output.logits[0, :-1].log_softmax(-1) for output in outputs]
        losses -= torch.tensor([log.gather(1, chunk[0, 1:, None]).sum() for log in logs])
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        for layers in zip(*(output.router_logits for output in outputs), strict=True):
            first, second = (layer[:-1].topk(top_k).indices for layer in layers)
            kept, routes = kept + int((second[..., None] == first[..., None, :]).any(-1).sum()), routes + second.numel()
    assert found.tokens == len(ids) - 18
    assert found.original_perplexity == pytest.approx(float((losses[0] / found.tokens).exp()), rel=1e-3)
    assert found.perplexity == pytest.approx(float((losses[1] / found.tokens).exp()), rel=1e-3)
    assert found.mean_kl == pytest.approx(kl / found.tokens, rel=1e-2) and found.mean_kl > 0.01
    assert found.changed_routes == pytest.approx(1 - kept / routes, abs=0.005) and found.changed_routes > 0.01


def test_models_that_cannot_be_compared_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    with pytest.raises(UsageError, match="differs in layers, experts"):
        compare_models(folders[0], tmp_path, token_ids(10), lambda *progress: None)
    with pytest.raises(UsageError, match="fewer than two tokens"):
        compare_models(*folders, [5], lambda *progress: None)
