"""Decode steps of a model at several batch sizes: ExpertFlow in all its processes, transformers resident on the GPU,
and transformers with accelerate's offloading. ExpertFlow draws the tokens, the others are given them."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM

from ..contender.order import Answer, Answered, Case, Order
from .results import result_of

BATCHES = (1, 8, 32)
PROMPT, STEPS, WARM = 32, 40, 4
DRAWN_BY = "100%"
SHARE_OF_ACCELERATE = 0.25
"""Of the weights, in GPU memory: the others are on the host."""
SPARE_BYTES = 2**30


def measure_ours(folder: Path, model: str, share: str) -> dict[str, Any]:
    """All stages, the whole model in the host store."""
    place = _model_folder(folder, model)
    options = {
        "device": "cuda",
        "tier": "host",
        "expert_memory": share,
        "kv_memory": "1GiB",
        "batch_size": max(BATCHES),
        "reads_in_flight": 4,
    }
    order = Order(model=str(place), cases=_cases(place), options=options, trial_steps=WARM)
    guarded = [sys.executable, "-m", "expertflow.ipc.guarded", str(os.getpid())]  # it ends when we are killed
    command = [*guarded, "expertflow.benchmarks.contender.ours"]
    ended = subprocess.run(command, input=msgspec.json.encode(order), capture_output=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr.decode()[-3000:])
    answer = msgspec.json.decode(ended.stdout.strip().splitlines()[-1], type=Answer)
    return {"ready_s": answer.ready_s, "rows": [_row(each, STEPS) for each in answer.cases]}


def measure_library(folder: Path, model: str, kind: str) -> dict[str, Any]:
    """transformers in this process; `kind` resident, or accelerate, which has to be installed."""
    place = _model_folder(folder, model)
    began = time.perf_counter()
    loaded = _resident(place) if kind == "resident" else _offloaded(place)
    ready_s = time.perf_counter() - began
    tokens = _drawn_tokens(folder, model, place)
    with torch.inference_mode():
        rows = [_row(_run(loaded, case, drawn), STEPS) for case, drawn in zip(_cases(place), tokens, strict=True)]
    return {"ready_s": ready_s, "peak_bytes": torch.cuda.max_memory_allocated(), "rows": rows}


def _resident(place: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", experts_implementation="grouped_mm")
    return model.to("cuda").eval()  # pyright: ignore[reportArgumentType]


def _offloaded(place: Path) -> Any:
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    memory: dict[int | str, int] = {0: int(SHARE_OF_ACCELERATE * weights) + SPARE_BYTES, "cpu": 4 * weights}
    options: dict[str, Any] = {"device_map": "auto", "max_memory": memory, "experts_implementation": "grouped_mm"}
    return AutoModelForCausalLM.from_pretrained(place, dtype="auto", **options).eval()


def _run(model: Any, case: Case, tokens: list[list[int]]) -> Answered:
    out, steps_s = None, []
    for steps in (WARM, STEPS):
        began = time.perf_counter()
        out = model(torch.tensor(case.prompts, device="cuda"), use_cache=True, logits_to_keep=1)
        first_s, steps_s = _until_chosen(out, began), []
        for column in range(steps - 1):
            began = time.perf_counter()
            ids = torch.tensor([[row[column]] for row in tokens], device="cuda")
            out = model(ids, past_key_values=out.past_key_values, use_cache=True)
            steps_s.append(_until_chosen(out, began))
    return Answered(first_s=first_s, steps_s=steps_s)


def _until_chosen(out: Any, began: float) -> float:
    """Choosing waits for the GPU."""
    out.logits[:, -1].argmax(-1).tolist()
    return time.perf_counter() - began


def _row(answered: Answered, steps: int) -> dict[str, Any]:
    times = answered.steps_s[WARM:]
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "first_ms": 1e3 * answered.first_s,
        "step_ms": 1e3 * statistics.median(times),
        "step_quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
        "steps": len(answered.steps_s) or steps,
        "tokens": answered.tokens,
        "facts": answered.facts,
    }


def _cases(place: Path) -> list[Case]:
    vocabulary = json.loads((place / "config.json").read_text())["vocab_size"]
    rng = random.Random(0)
    return [Case(prompts=_random_rows(rng, rows, PROMPT, vocabulary), steps=STEPS) for rows in BATCHES]


def _drawn_tokens(folder: Path, model: str, place: Path) -> list[list[list[int]]]:
    """Those that ExpertFlow drew with every expert resident; random ones if it has not run."""
    drawn = result_of(folder, f"{model}-ours-{DRAWN_BY}")
    if drawn is not None:
        return [row["tokens"] for row in drawn["rows"]]
    vocabulary = json.loads((place / "config.json").read_text())["vocab_size"]
    rng = random.Random(1)
    return [_random_rows(rng, rows, STEPS, vocabulary) for rows in BATCHES]


def _random_rows(rng: random.Random, rows: int, length: int, vocabulary: int) -> list[list[int]]:
    return [[rng.randrange(3, vocabulary) for _ in range(length)] for _ in range(rows)]


def _model_folder(folder: Path, model: str) -> Path:
    made = result_of(folder, f"{model}-model")
    if made is None:
        raise RuntimeError(f"model {model} was not made: see {model}-model.failed.txt")
    return Path(made["folder"])
