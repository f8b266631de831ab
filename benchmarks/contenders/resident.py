"""Run `transformers` with the whole model in memory. Argument: one of its experts backends."""

from __future__ import annotations

import sys
import time
from math import inf
from pathlib import Path
from typing import Any

from .base import FEW_STEPS, Case, CaseResult, Contender, Task, TaskResult, read_task, write_result


class Resident(Contender):
    """Run one experts backend of transformers."""

    module = "resident"

    def __init__(self, backend: str = "grouped_mm") -> None:
        self.name, self._backend = f"transformers resident, {backend}", backend

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), self._backend]


def load_resident(folder: str, backend: str) -> Any:
    """Load the model in bfloat16, whole."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation=backend).eval()


def run_cases(model: Any, task: Task) -> list[CaseResult]:
    """Run each case with the thread count that takes least time in a few steps."""
    import torch

    results = []
    with torch.inference_mode():
        for case in task.cases:
            threads = _best_threads(model, case, task)
            torch.set_num_threads(threads)
            result = _prefill(model, case) if case.prefills else _decode(model, case, task.patience_s)
            result.facts["threads"] = threads
            results.append(result)
    return results


def _best_threads(model: Any, case: Case, task: Task) -> int:
    import torch

    if not (task.trial_steps and case.trial):
        return task.threads[0]
    spent = {}
    for threads in task.threads:
        torch.set_num_threads(threads)
        tried = _run(model, case, 0 if case.prefills else task.trial_steps, inf)
        spent[threads] = tried.first_s if case.prefills else sum(tried.steps_s)
    return min(spent, key=lambda threads: spent[threads])


def _decode(model: Any, case: Case, patience_s: float) -> CaseResult:
    return _run(model, case, len(case.tokens[0]) - 1, patience_s)


def _prefill(model: Any, case: Case) -> CaseResult:
    spent = [_run(model, case, 0, inf).first_s for _ in range(case.prefills)]
    return CaseResult(first_s=spent[0], steps_s=spent)


def _run(model: Any, case: Case, steps: int, patience_s: float) -> CaseResult:
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
    return CaseResult(first_s=first_s, steps_s=steps_s, choices=choices)


def _likeliest(out: Any) -> list[int]:
    return out.logits[:, -1].argmax(-1).tolist()


def main() -> None:
    task, begun = read_task(), time.perf_counter()
    model = load_resident(task.model, sys.argv[1])
    ready_s = time.perf_counter() - begun
    write_result(TaskResult(ready_s=ready_s, cases=run_cases(model, task)))


if __name__ == "__main__":
    main()
