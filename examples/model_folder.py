"""The built-in model's folder: tokenizer, configuration, weights, figures and model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from corpus import END_OF_TEXT, SOURCES
from routing_report import WINDOW_TOKENS, expert_shares, read_ids, read_text, recall, token_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trigram import Trigram

VOCABULARY = 2048
CONTEXT_TOKENS = 512
ROPE_THETA = 10_000.0
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 160,
    "intermediate_size": 304,
    "moe_intermediate_size": 76,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 40,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": True,
    "max_position_embeddings": CONTEXT_TOKENS,
    "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    "initializer_range": 0.06,
}
"""6 layers of 32 experts, 4 of which see each token. Initial weights are wide (the library's default is 0.02), so that
outputs depend on the experts from the first step."""
FIGURES_FILE = "figures.json"
SLICE_TOKENS = 16 * WINDOW_TOKENS + 1
"""The slice of the held-out text that tests read again: its first so many tokens."""
TABLE_TOKENS = 400_000
"""Training tokens whose routing makes up the table P(expert | token id)."""


def build_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 2048 entries on the training documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Return the token ids [tokens] of a whole text."""
    return torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)


def new_model(tokenizer: PreTrainedTokenizerFast, experts_implementation: str) -> Qwen3MoeForCausalLM:
    """Return the untrained model of `SHAPE`, its experts run by the named implementation."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3MoeConfig(**SHAPE | ids)
    config._experts_implementation = experts_implementation
    return Qwen3MoeForCausalLM(config)


def write_folder(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder as bfloat16 beside its destination and rename it into place, so no reader sees half of it."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # tied to the embedding
    model.save_pretrained(fresh, state_dict={name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    tokenizer.save_pretrained(fresh)
    dtype = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    _add_names(fresh / "config.json", dtype | {"num_experts": model.config.num_experts, "rope_theta": ROPE_THETA})
    _add_names(fresh / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    eos = tokenizer.eos_token_id
    GenerationConfig(eos_token_id=eos, pad_token_id=eos, max_new_tokens=64).save_pretrained(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)
    _replace_folder(fresh, folder)


def _add_names(path: Path, names: dict[str, Any]) -> None:
    """Add the names that readers older or newer than this library look for."""
    path.write_text(json.dumps(json.loads(path.read_text()) | names, indent=2, sort_keys=True) + "\n")


def _replace_folder(fresh: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def figures_of(folder: Path, train: torch.Tensor, develop: torch.Tensor, held_out: torch.Tensor) -> dict[str, Any]:
    """Measure the model in `folder` in float32 against the trigram model; all texts are token ids [tokens]."""
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    trigram = Trigram(train.numpy(), develop.numpy(), VOCABULARY)
    part = held_out[:SLICE_TOKENS]
    reading = read_text(model, held_out)
    return {
        "held_out": _losses(reading.loss_nats, trigram, held_out),
        "slice": _losses(read_text(model, part).loss_nats, trigram, part),
        "routing": _routing_figures(model, train, read_ids(held_out), reading.chosen),
        "weights": {"bytes": (folder / "model.safetensors").stat().st_size},
    }


def _losses(model_nats: float, trigram: Trigram, ids: torch.Tensor) -> dict[str, Any]:
    sha256 = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    trigram_nats = trigram.loss_nats(ids.numpy())
    return {"tokens": len(ids), "model_nats": model_nats, "trigram_nats": trigram_nats, "sha256_of_ids": sha256}


def _routing_figures(
    model: Qwen3MoeForCausalLM, train: torch.Tensor, ids: torch.Tensor, chosen: torch.Tensor
) -> dict[str, Any]:
    """Compare held-out choices [layers, tokens, k] with what the training text's routing predicts."""
    experts = model.config.num_experts
    sample = train[:TABLE_TOKENS]
    learned = read_text(model, sample).chosen
    table = token_table(read_ids(sample), learned, VOCABULARY, experts)
    by_token = recall(table[:, ids], chosen)
    by_popularity = recall(expert_shares(learned, experts).unsqueeze(1), chosen)
    shares = expert_shares(chosen, experts)
    return {
        "least_expert_share": shares.min().item(),
        "greatest_expert_share": shares.max().item(),
        "table_recall_at_4": by_token.mean().item(),
        "table_recall_at_4_by_layer": [round(value, 4) for value in by_token.tolist()],
        "popularity_recall_at_4": by_popularity.mean().item(),
    }


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures (tests read them) and the model card."""
    (folder / FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n")
    template = (Path(__file__).parent / "model_card.md").read_text()
    sources = "\n".join(f"| {s.title} | `{s.package}` | {s.version} | {s.licence} |" for s in SOURCES)
    flat = {f"{group}_{name}": value for group, part in figures.items() for name, value in part.items()}
    (folder / "README.md").write_text(template.format(sources=sources, **flat))
