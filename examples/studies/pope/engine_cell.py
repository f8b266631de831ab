"""Runs a cell through the product: its engine, its client, its counters."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertflow import Client, Completion, Config, Supervisor
from expertflow.benchmarks.counters import read_counters, subtract_counters

from .cells import BY_NAME, Cell
from .questions import AskedQuestion

_SUBMITTED = 512
"""Questions submitted at a time: each keeps its pixels in the run directory until it is answered."""
MAX_SENTENCE_TOKENS, MAX_WORD_TOKENS = 24, 3
KV_MEMORY = "256MiB"


@dataclass(frozen=True)
class Answers:
    """What an engine said, and what it took."""

    texts: list[str]
    first_logprobs: list[float]
    """Log-probability of each answer's first token, with all its bits; empty if not asked for."""
    figures: dict[str, float]


def engine_config(cell: Cell, folder: Path, link_rate: str) -> Config:
    """Return the cell's configuration; an exact cell has results that do not depend on the batch."""
    system = BY_NAME[cell.system]
    options: dict[str, Any] = dict(system.options)
    if cell.source == "link":
        options |= {"tier": "host", "link_rate": link_rate}
        if "link" in Config.__struct_fields__:
            options["link"] = "dma"
    if cell.kind == "exact":
        options["batch_invariant"] = True
    memory = {"expert_memory": cell.budget, "kv_memory": KV_MEMORY}
    return Config.load(system.preset, model=str(folder), batch_size=cell.batch, **memory, **options)


def run_engine_cell(cell: Cell, folder: Path, questions: list[AskedQuestion], link_rate: str) -> Answers:
    """Start an engine, warm it up and ask all questions; a speed cell asks for sentences, in an order by its seed."""
    in_a_sentence = cell.kind == "speed"
    order = list(range(len(questions)))
    random.Random(cell.seed).shuffle(order) if cell.kind == "speed" else None
    with Supervisor(engine_config(cell, folder, link_rate)) as engine, Client(engine.address) as client:
        warm = [questions[place] for place in order[: min(len(order), 3 * cell.batch)]]
        _ask(client, warm, in_a_sentence)
        before = read_counters(client)
        done, elapsed_s = _ask(client, [questions[place] for place in order], in_a_sentence)
        grown = subtract_counters(read_counters(client), before)
        facts = client.stats().facts["loader"]
    by_place = dict(zip(order, done, strict=True))
    answers = [by_place[place] for place in range(len(order))]
    figures = _figures(answers, grown, elapsed_s) | {"slot_mb": float(facts["slot_bytes"]) / 1e6}
    logprobs = [each.logprobs[0].logprob for each in answers if each.logprobs]
    return Answers([each.text.strip() for each in answers], logprobs, figures)


def _ask(client: Client, questions: list[AskedQuestion], in_a_sentence: bool) -> tuple[list[Completion], float]:
    """Return the completions, and the seconds that the engine took: those of preparing images are the client's."""
    done: list[Completion] = []
    elapsed_s = 0.0
    most = MAX_SENTENCE_TOKENS if in_a_sentence else MAX_WORD_TOKENS
    for start in range(0, len(questions), _SUBMITTED):
        prompts = [each.prompt(in_a_sentence) for each in questions[start : start + _SUBMITTED]]
        batch = client.submit(prompts, most, logprobs=None if in_a_sentence else 0)
        begun_s = time.perf_counter()
        done += batch.results()
        elapsed_s += time.perf_counter() - begun_s
    return done, elapsed_s


def _figures(answers: list[Completion], grown: dict[str, float], elapsed_s: float) -> dict[str, float]:
    """Return rates, times and what the loader did; times are medians over the questions, from their admission."""
    tokens = sum(len(each.token_ids) for each in answers)
    first = [each.timings.first_token_ns - each.timings.queued_ns for each in answers]
    later = [
        (each.timings.total_ns - each.timings.first_token_ns) / (len(each.token_ids) - 1)
        for each in answers
        if len(each.token_ids) > 1
    ]
    needed = grown["hits"] + grown["misses"]
    return {
        "questions_per_s": len(answers) / elapsed_s,
        "tokens_per_s": tokens / elapsed_s,
        "first_token_ms": statistics.median(first) / 1e6,
        "token_ms": statistics.median(later) / 1e6 if later else 0.0,
        "found_when_needed": grown["hits"] / max(1.0, needed),
        "loaded_mb_a_token": grown["bytes"] / tokens / 1e6,
        "stall_share": grown["stall_ns"] / 1e9 / elapsed_s,
        "cpu_ms_a_token": 1e3 * grown["cpu_s"] / tokens,
    }
