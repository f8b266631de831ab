"""`accelerate` with weights kept in memory and handed to each module as it runs. Argument: the folder of its packages.

Where compute is on the CPU too, it saves nothing; it is here so that the line is not missing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .accelerate_disk import PACKAGE
from .kind import Contender
from .order import Answer, give, read_order
from .packages import install
from .transformers_steps import run_cases


class AccelerateCpu(Contender):
    name = "accelerate CPU offload"
    module = "accelerate_cpu"

    def prepare(self, model: Path) -> None:
        install("accelerate", [PACKAGE])

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(install("accelerate", [PACKAGE]))]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import torch
    from accelerate import cpu_offload  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    order, begun = read_order(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        order.model, dtype=torch.bfloat16, experts_implementation="grouped_mm"
    ).eval()
    cpu_offload(model, execution_device=torch.device("cpu"))
    ready_s = time.perf_counter() - begun
    give(Answer(ready_s=ready_s, cases=run_cases(model, order)))


if __name__ == "__main__":
    main()
