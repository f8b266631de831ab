"""Train the built-in model from scratch on two CPU cores in under an hour.

    python examples/train_model.py --packages DIR --minutes 48

`DIR` is "/" when the Debian packages named in `corpus.py` are installed, or the folder they were unpacked into.
The model folder, the held-out text and every figure of the model card are written by this one command.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
import tyro
from corpus import Split, join_documents, load_documents, split_documents
from expert_training import SORTED_EXPERTS, balance_loss, keep_freed_memory, register
from model_folder import FIGURES_FILE, build_tokenizer, encode, figures_of, new_model, write_card, write_folder
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

HERE = Path(__file__).parent
console = Console()


@dataclass(frozen=True)
class Options:
    """Options of the command line, as `tyro` reads them."""

    packages: Path = Path("/")
    """Folder below which the Debian packages' files lie."""
    destination: Path = HERE / "model"
    """Model folder to write."""
    held_out_text: Path = HERE / "held_out.txt"
    """File to write the text that is never trained on to."""
    minutes: float = 48.0
    """Wall-clock budget of the training loop; the learning rate follows it."""
    steps: int = 0
    """Train exactly so many steps instead (0: use the minutes): only such a run can be repeated."""
    batch_tokens: int = 4096
    """Tokens a step."""
    peak_rate: float = 2.5e-3
    """Highest learning rate."""
    balance: float = 0.06
    """Weight of the loss that keeps experts evenly used."""
    held_out_share: float = 0.027
    """Share of the text set aside for the final test, and once more for development."""
    checkpoint_steps: tuple[int, ...] = (400, 1200)
    """Steps after which an early model folder is written."""
    seed: int = 20410
    only_measure: bool = False
    """Train nothing: measure the folder at `destination` again and rewrite its card."""


@dataclass
class Clock:
    """Progress of the run, from 0 to 1, by steps or by wall-clock time."""

    options: Options
    started_s: float
    step: int = 0

    def progress(self) -> float:
        """Return the share of the budget that is used."""
        if self.options.steps:
            return self.step / self.options.steps
        return (time.monotonic() - self.started_s) / (60 * self.options.minutes)


def batches(ids: torch.Tensor, tokens: int, clock: Clock, seed: int) -> Iterator[torch.Tensor]:
    """Yield [rows, window + 1] slices of the text in a new order and at a new offset every epoch.

    Windows are 256 tokens long at first (attention is cheaper) and 512 in the last third.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        window = 256 if clock.progress() < 0.67 else 512
        offset = int(torch.randint(window, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - window - 1, window)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for rows in starts.split(tokens // window):
            yield ids[rows.unsqueeze(1) + torch.arange(window + 1)]
            if window == 256 and clock.progress() >= 0.67:
                break


def learning_rate(options: Options, clock: Clock) -> float:
    """Return the rate: a warm-up of 100 steps, then a cosine down to a fiftieth."""
    warm_up = min(1.0, (clock.step + 1) / 100)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, clock.progress())))
    return options.peak_rate * warm_up * (0.02 + 0.98 * cosine)


def train_step(model: Qwen3MoeForCausalLM, optimizer: Optimizer, batch: torch.Tensor, balance: float) -> float:
    """Take one step on `batch` [rows, window + 1]; return the language-model loss in nats a token."""
    output = model(input_ids=batch[:, :-1], output_router_logits=True, use_cache=False)
    loss = functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
    total = loss + balance * balance_loss(output.router_logits, model.config.num_experts_per_tok)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def new_optimizer(model: Qwen3MoeForCausalLM) -> Optimizer:
    """Return AdamW with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, options: Options) -> Clock:
    """Train in place until the budget is used, writing early folders on the way."""
    optimizer = new_optimizer(model)
    clock = Clock(options, time.monotonic())
    stream = batches(ids, options.batch_tokens, clock, options.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0)
        average = math.log(len(tokenizer))
        while clock.progress() < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, clock)
            average += 0.02 * (train_step(model, optimizer, next(stream), options.balance) - average)
            clock.step += 1
            bar.update(task, completed=clock.progress(), description=f"step {clock.step} loss {average:.3f}")
            _note(model, tokenizer, clock, average)
    return clock


def _note(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, clock: Clock, average: float) -> None:
    if clock.step % 100 == 0:
        console.log(f"step {clock.step}: {clock.progress():.1%}, loss {average:.3f} nats a token")
    if clock.step in clock.options.checkpoint_steps:
        write_folder(model, tokenizer, clock.options.destination)
        console.log(f"wrote an early model to {clock.options.destination}")


def read_corpus(options: Options) -> Split:
    """Read and split the text, and write the held-out part where tests and benchmarks find it."""
    split = split_documents(load_documents(options.packages), options.held_out_share, options.seed)
    options.held_out_text.write_text(join_documents(split.held_out), encoding="utf-8")
    return split


def main(options: Options) -> None:
    """Train (or only measure), write the folder, its figures and its card."""
    torch.manual_seed(options.seed)
    split = read_corpus(options)
    texts = [join_documents(part) for part in (split.train, split.develop, split.held_out)]
    if options.only_measure:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.destination)
        ids = [encode(tokenizer, text) for text in texts]
        training = json.loads((options.destination / FIGURES_FILE).read_text())["training"]
    else:
        tokenizer = build_tokenizer(split.train)
        ids = [encode(tokenizer, text) for text in texts]
        training = train_folder(tokenizer, ids[0], options)
    figures = figures_of(options.destination, *ids) | {"training": training}
    write_card(options.destination, figures)
    console.print_json(data=figures)


def train_folder(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, options: Options) -> dict[str, Any]:
    """Train on `ids` [tokens] and write the model folder; return what the training took."""
    keep_freed_memory()
    register()
    console.log(f"{len(ids):,} tokens to train on")
    model = new_model(tokenizer, SORTED_EXPERTS)
    clock = train(model, tokenizer, ids, options)
    minutes = round((time.monotonic() - clock.started_s) / 60, 1)
    write_folder(model, tokenizer, options.destination)
    seen_tokens = clock.step * options.batch_tokens
    epochs = round(seen_tokens / len(ids), 1)
    return {"minutes": minutes, "steps": clock.step, "seen_tokens": seen_tokens, "epochs": epochs}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
