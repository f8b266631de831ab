"""Forced tokens through a transformers model: a prefill, then a step a token; seconds of each, and what it chose."""

from __future__ import annotations

import time
from math import inf
from typing import Any

from .order import FEW_STEPS, Answered, Case, Order


def run_cases(model: Any, order: Order) -> list[Answered]:
    """Each case with the thread count that takes least time in a few steps."""
    import torch

    answers = []
    with torch.inference_mode():
        for case in order.cases:
            threads = _best_threads(model, case, order)
            torch.set_num_threads(threads)
            done = _run(model, case, len(case.tokens[0]) - 1, order.patience_s)
            done.facts["threads"] = threads
            answers.append(done)
    return answers


def _best_threads(model: Any, case: Case, order: Order) -> int:
    import torch

    if not (order.trial_steps and case.trial):
        return order.threads[0]
    spent = {}
    for threads in order.threads:
        torch.set_num_threads(threads)
        spent[threads] = sum(_run(model, case, order.trial_steps, inf).steps_s)
    return min(spent, key=lambda threads: spent[threads])


def _run(model: Any, case: Case, steps: int, patience_s: float) -> Answered:
    import torch

    begun = started = time.perf_counter()
    out = model(torch.tensor(case.prompts), use_cache=True, logits_to_keep=1)
    choices = [_likeliest(out)]
    first_s, steps_s = time.perf_counter() - begun, []
    for column in range(steps):
        begun = time.perf_counter()
        if column >= FEW_STEPS and begun - started > patience_s:
            break
        ids = torch.tensor([[row[column]] for row in case.tokens])
        out = model(ids, past_key_values=out.past_key_values, use_cache=True)
        choices.append(_likeliest(out))
        steps_s.append(time.perf_counter() - begun)
    return Answered(first_s=first_s, steps_s=steps_s, choices=choices)


def _likeliest(out: Any) -> list[int]:
    return out.logits[:, -1].argmax(-1).tolist()
