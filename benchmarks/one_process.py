"""Run forced tokens through a resident model in this one process and print its figures as JSON. Started by
resident.py: argument `local` (ExpertFlow's own compute, without its processes) or a backend of transformers."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.workers.model.unit import Unit
from transformers import AutoModelForCausalLM

from .models import survey_of

WARM_STEPS = 4
PREFILLS = 3


class Contender(Protocol):
    """Run one resident model."""

    def prefill(self, prompts: list[list[int]]) -> None:
        """Run these prompts, of equal lengths, as one new batch."""
        ...

    def step(self, tokens: list[int]) -> None:
        """Run one token of each row of the last batch and choose the likeliest next ones."""
        ...


class Library:
    """Run transformers with one of its experts backends."""

    def __init__(self, folder: str, backend: str) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", experts_implementation=backend)
        self._model: Any = loaded.eval()

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> None:
        self._cache = self._model(torch.tensor(prompts), use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> None:
        ids = torch.tensor([[token] for token in tokens])
        self._model(ids, past_key_values=self._cache, use_cache=True).logits.argmax(-1)


class Local:
    """Run ExpertFlow's compute over as many slots as experts; loader and ledger are function calls."""

    def __init__(self, folder: str) -> None:
        survey = survey_of(Path(folder))
        self._forced: list[int] = []
        self._runtime = LocalRuntime(survey, survey.expert_count, choose=self._choose, hints=False)
        self._number = self._unit = 0

    def _choose(self, step: RunStep, unit: Unit, logits: torch.Tensor) -> list[Any]:
        return logits.argmax(-1).tolist() if not self._forced else self._forced

    def prefill(self, prompts: list[list[int]]) -> None:
        self._unit, self._forced = self._unit + 1, []
        rows = [RequestRow(1000 * self._unit + i, prompt, 0, Sampling()) for i, prompt in enumerate(prompts)]
        self._run(admit=rows)

    def step(self, tokens: list[int]) -> None:
        # A row's newest token is run, so what is forced now is what the next step runs.
        self._forced = tokens
        self._run()

    def _run(self, **step: Any) -> None:
        self._number += 1
        self._runtime.run(RunStep(number=self._number, unit=self._unit, **step))


def main() -> None:
    order = json.load(sys.stdin)
    kind = order["kind"]
    contender: Contender = Local(order["folder"]) if kind == "local" else Library(order["folder"], kind)
    _warm(contender, order["prefill"])
    figures = {
        "prefill_s": [_timed(lambda: contender.prefill(order["prefill"])) for _ in range(PREFILLS)],
        "decode_ms": {
            batch["rows"]: _decode(contender, batch["prompts"], batch["tokens"]) for batch in order["batches"]
        },
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def _warm(contender: Contender, prompts: list[list[int]]) -> None:
    """Touch everything once, so that every expert is there."""
    for _ in range(2):
        contender.prefill(prompts)


def _decode(contender: Contender, prompts: list[list[int]], tokens: list[list[int]]) -> float:
    contender.prefill(prompts)
    columns = list(zip(*tokens, strict=True))
    times = [_timed(lambda column=column: contender.step(list(column))) for column in columns[:-1]]
    return 1e3 * statistics.median(times[WARM_STEPS:])


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
