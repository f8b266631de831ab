"""The built-in model has learned its text, uses all of its experts, and routes neither at random nor by token alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.examples.routing_report import Reading, expert_shares, read_ids, read_text, recall, token_table
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "model"
ROUTED_TOKENS = 12 * 1024 + 1


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    return torch.tensor(tokenizer.backend_tokenizer.encode((EXAMPLES / "held_out.txt").read_text()).ids)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((FOLDER / "figures.json").read_text())


@pytest.fixture(scope="module")
def reading(model: Any, held_out: torch.Tensor) -> Reading:
    return read_text(model, held_out[:ROUTED_TOKENS])


def test_the_loss_on_held_out_text_is_below_a_trigram_model(
    model: Any, held_out: torch.Tensor, figures: dict[str, Any]
):
    expected = figures["slice"]
    part = held_out[: expected["tokens"]]
    assert hashlib.sha256(part.numpy().tobytes()).hexdigest() == expected["sha256_of_ids"]
    loss = read_text(model, part).loss_nats
    assert loss < expected["trigram_nats"]
    assert loss == pytest.approx(expected["model_nats"], abs=1e-3)


def test_every_expert_takes_its_part_of_held_out_text(model: Any, reading: Reading):
    shares = expert_shares(reading.chosen, model.config.num_experts)
    assert shares.min() >= 0.003


def test_the_token_predicts_routing_in_part(model: Any, held_out: torch.Tensor, reading: Reading):
    """The table is built from the first half of the held-out text read here, not from the training text."""
    experts = model.config.num_experts
    ids = read_ids(held_out[:ROUTED_TOKENS])
    half = len(ids) // 2
    learned, actual = reading.chosen[:, :half], reading.chosen[:, half:]
    table = token_table(ids[:half], learned, model.config.vocab_size, experts)
    by_token = recall(table[:, ids[half:]], actual).mean()
    by_popularity = recall(expert_shares(learned, experts).unsqueeze(1), actual).mean()
    assert 0.35 <= by_token <= 0.75
    assert by_token >= by_popularity + 0.15


def test_the_figures_of_the_card_hold_their_bounds(figures: dict[str, Any]):
    routing, losses = figures["routing"], figures["held_out"]
    assert losses["model_nats"] < losses["trigram_nats"]
    assert routing["least_expert_share"] >= 0.003
    assert 0.35 <= routing["table_recall_at_4"] <= 0.75
    assert routing["table_recall_at_4"] >= routing["popularity_recall_at_4"] + 0.15


def test_the_folder_is_small_and_complete():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= 16_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["num_experts"] == 32
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((FOLDER / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"]
    assert "bible-kjv-text" in (FOLDER / "README.md").read_text()


def test_text_survives_the_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = (EXAMPLES / "held_out.txt").read_text()[:20_000] + " naïve 東京 \t{x}"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_prompts_are_short_lines_of_text():
    prompts = (EXAMPLES / "prompts.txt").read_text().splitlines()
    assert len(prompts) >= 20
    assert all(0 < len(prompt) < 80 for prompt in prompts)
