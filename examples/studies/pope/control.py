"""Negative control: the same answers if missing experts were not waited for, computed by transformers.

A cache of experts is simulated while the model runs, with the same share of slots for each layer: slots that all
layers share would hold nothing of a layer by the time its turn comes again. A layer that misses an expert either
leaves it out (skip) or lets the resident expert that its router likes best take its place (substitute); the missing
expert arrives afterwards. The product does neither. The control shows that the measure sees what such a shortcut costs.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from expertflow.runtime.client.processor import load_processor
from expertflow.workers.model.architecture import load_config, model_class
from PIL import Image
from torch import nn

from .cells import Cell
from .questions import AskedQuestion

Policy = Literal["skip", "substitute"]


@dataclass
class SimulatedCache:
    """Slots shared by all layers, or so many for each layer; the least recently used expert goes."""

    slots: int
    by_layer: bool = False
    held: dict[int, OrderedDict[tuple[int, int], None]] = field(default_factory=lambda: defaultdict(OrderedDict))
    """Keys (layer, expert) of the experts in slots, by layer, or all under 0."""
    hits: int = 0
    misses: int = 0

    def fill(self, expert_counts: list[int]) -> None:
        """Load the first experts of every layer, as many as there are slots."""
        pairs = [(layer, expert) for layer, count in enumerate(expert_counts) for expert in range(count)]
        for layer, expert in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
            held = self.held_of(layer)
            if len(held) < self.slots:
                held[layer, expert] = None

    def held_of(self, layer: int) -> OrderedDict[tuple[int, int], None]:
        """Return the experts that compete with a layer's, the one to go first in front."""
        return self.held[layer if self.by_layer else 0]

    def resident(self, layer: int, experts: int) -> torch.Tensor:
        """Return bool [experts], true where the layer's expert is in a slot."""
        held = self.held_of(layer)
        return torch.tensor([(layer, expert) in held for expert in range(experts)])

    def use(self, layer: int, needed: list[int]) -> None:
        """Count and load what a layer needs, after the layer has run."""
        held = self.held_of(layer)
        for expert in needed:
            key = (layer, expert)
            self.hits += key in held
            self.misses += key not in held
            held[key] = None
            held.move_to_end(key)
        while len(held) > self.slots:
            held.popitem(last=False)


def without_missing(
    policy: Policy, logits: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, resident: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the choices [tokens, k] and weights [tokens, k] with resident experts alone.

    skip: a missing expert weighs nothing, and the others take over its weight. substitute: the resident expert with
    the highest logit that the token has not chosen takes its place and its weight, as long as there is one.
    """
    present = resident[chosen]
    if policy == "skip":
        kept = weights * present
        total = kept.sum(-1, keepdim=True)
        scale = torch.where(total > 0, weights.sum(-1, keepdim=True) / total.clamp_min(1e-20), 0.0)
        return chosen, kept * scale
    free = resident.expand_as(logits).scatter(1, chosen, False)
    ranked = logits.masked_fill(~free, float("-inf")).topk(min(chosen.shape[1], logits.shape[1]), dim=-1)
    turn = ((~present).cumsum(-1) - 1).clamp_min(0)
    replaced = torch.where(present, chosen, ranked.indices.gather(1, turn))
    found = present | ranked.values.gather(1, turn).isfinite()
    return replaced, weights * found


class ControlModel:
    """A model in transformers with a simulated cache."""

    def __init__(self, folder: Path) -> None:
        config = load_config(folder)
        cls: Any = model_class(config)
        self._model: Any = cls.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor = load_processor(str(folder))
        self._blocks = [block for block in self._model.modules() if _is_routed(block)]
        self.expert_counts: list[int] = [len(block.gate.weight) for block in self._blocks]
        """Routed experts of each block."""
        self._logits = torch.empty(0)

    @torch.inference_mode()
    def answer(self, questions: list[AskedQuestion], batch: int, policy: Policy, cache: SimulatedCache) -> list[str]:
        """Return each question's first word, the likeliest token behind the prompt, in batches of equal length."""
        words: list[str] = []
        with self._simulating(policy, cache):
            for start in range(0, len(questions), batch):
                words += self._first_words(questions[start : start + batch])
        return words

    def _first_words(self, questions: list[AskedQuestion]) -> list[str]:
        texts = [self._text(each) for each in questions]
        images = [_open_image(each.image) for each in questions]
        options = {"padding": True, "padding_side": "left", "return_mm_token_type_ids": True}
        arrays = self._processor(text=texts, images=images, return_tensors="np", **options)
        inputs = {name: torch.from_numpy(arrays[name]) for name in arrays}
        logits = self._model(**inputs, logits_to_keep=1).logits[:, -1]
        return [self._processor.tokenizer.decode([token]).strip() for token in logits.argmax(-1).tolist()]

    def _text(self, asked: AskedQuestion) -> str:
        content = [{"type": "image"}, {"type": "text", "text": asked.prompt().text}]
        turns = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    @contextmanager
    def _simulating(self, policy: Policy, cache: SimulatedCache) -> Iterator[None]:
        hooks = []
        for layer, block in enumerate(self._blocks):
            hooks.append(block.gate.register_forward_hook(self._keep_logits))
            hooks.append(block.experts.register_forward_pre_hook(self._without_missing(layer, policy, cache)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_logits(self, router: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = output[0]

    def _without_missing(self, layer: int, policy: Policy, cache: SimulatedCache) -> Any:
        def change(experts: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, chosen, weights = inputs
            resident = cache.resident(layer, self._logits.shape[-1])
            cache.use(layer, chosen.unique().tolist())
            chosen, weights = without_missing(policy, self._logits, chosen, weights, resident)
            return hidden, chosen, weights

        return change


def _is_routed(block: Any) -> bool:
    return hasattr(block, "gate") and hasattr(block, "experts") and hasattr(block.gate, "top_k")


def _open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def run_control(cell: Cell, folder: Path, questions: list[AskedQuestion]) -> tuple[list[str], dict[str, float]]:
    """Return the answers under the cell's policy and budget, and the simulated cache's share of hits."""
    model = ControlModel(folder)
    share = float(cell.budget.rstrip("%")) / 100
    cache = SimulatedCache(max(1, round(share * max(model.expert_counts))), by_layer=True)
    cache.fill(model.expert_counts)
    answers = model.answer(questions, cell.batch, "skip" if cell.system == "skip" else "substitute", cache)
    return answers, {"found_when_needed": cache.hits / max(1, cache.hits + cache.misses)}
