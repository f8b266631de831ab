"""`transformers` with the whole model in memory. Argument: one of its experts backends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .kind import Contender
from .order import Answer, give, read_order
from .transformers_steps import run_cases


class Resident(Contender):
    module = "resident"

    def __init__(self, backend: str = "grouped_mm") -> None:
        self.name, self._backend = f"transformers resident, {backend}", backend

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), self._backend]


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    order, begun = read_order(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        order.model, dtype=torch.bfloat16, experts_implementation=sys.argv[1]
    ).eval()
    ready_s = time.perf_counter() - begun
    give(Answer(ready_s=ready_s, cases=run_cases(model, order)))


if __name__ == "__main__":
    main()
