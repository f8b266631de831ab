"""Decode steps of a model at several batch sizes: ExpertFlow in all its processes, transformers resident on the GPU,
and transformers with accelerate's offloading. ExpertFlow draws the tokens, the others are given them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from os import getpid
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM

from ..contender.order import FEW_STEPS, Answer, Answered, Case, Order
from .lru import lru_bytes
from .results import result_of
from .rows import row_of
from .under_test import Scale, UnderTest

DRAWN_BY = "100%"
SHARE_OF_ACCELERATE = 0.25
"""Of the weights, on the device: the others are on the host."""


def measure_ours(test: UnderTest, folder: Path, model: str, share: str) -> dict[str, Any]:
    """All stages, the whole model in the host store. Its routing is recorded meanwhile, for the replay."""
    place, scale = _model_folder(folder, model), test.scale
    with tempfile.TemporaryDirectory() as trace:
        options = {
            "device": test.device,
            "tier": "host",
            "expert_memory": share,
            "kv_memory": scale.kv_memory,
            "reads_in_flight": 4,
            "trace": trace,
        }
        order = Order(model=str(place), cases=_cases(scale, place), options=options)
        order = msgspec.structs.replace(order, trial_steps=scale.warm, patience_s=scale.patience_s)
        answer = _run_ours(order)
        loads = lru_bytes(Path(trace), scale.batches, scale.warm)
    rows = [row_of(each, batch, scale.warm) for each, batch in zip(answer.cases, scale.batches, strict=True)]
    rows = [row | {"lru_bytes_per_step": each} for row, each in zip(rows, loads, strict=True)]
    return {"ready_s": answer.ready_s, "rows": rows}


def _run_ours(order: Order) -> Answer:
    guarded = [
        sys.executable,
        "-m",
        "expertflow.ipc.stage.run_with_parent",
        str(getpid()),
    ]  # it ends when we are killed
    command = [*guarded, "expertflow.benchmarks.contender.ours"]
    ended = subprocess.run(command, input=msgspec.json.encode(order), capture_output=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr.decode()[-3000:])
    return msgspec.json.decode(ended.stdout.strip().splitlines()[-1], type=Answer)


def measure_library(test: UnderTest, folder: Path, model: str, kind: str) -> dict[str, Any]:
    """transformers in this process; `kind` resident, or accelerate, which has to be installed."""
    place, scale = _model_folder(folder, model), test.scale
    tokens = _drawn_tokens(scale, folder, model, place)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        began = time.perf_counter()
        loaded = _resident(test, place) if kind == "resident" else _offloaded(test, place, Path(scratch))
        ready_s = time.perf_counter() - began
        cases = zip(_cases(scale, place), tokens, scale.batches, strict=True)
        rows = [row_of(_run(test, loaded, case, drawn), batch, scale.warm) for case, drawn, batch in cases]
    return {"ready_s": ready_s, "peak_bytes": test.peak_bytes(), "rows": rows}


def _resident(test: UnderTest, place: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", experts_implementation="grouped_mm")
    return model.to(test.where).eval()  # pyright: ignore[reportArgumentType]


def _offloaded(test: UnderTest, place: Path, scratch: Path) -> Any:
    """With room for one layer more, which accelerate keeps free for those that come and go."""
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    kept = int((SHARE_OF_ACCELERATE + 1 / _config(place)["num_hidden_layers"]) * weights)
    options = test.offloading(kept, scratch) | {"experts_implementation": "grouped_mm"}
    return AutoModelForCausalLM.from_pretrained(place, dtype="auto", **options).eval()


def _run(test: UnderTest, model: Any, case: Case, tokens: list[list[int]]) -> Answered:
    """A few steps first, which are not counted."""
    scale = test.scale
    _decode(test, model, case, tokens, scale.warm - 1)
    return _decode(test, model, case, tokens, min(map(len, tokens)) - 1)


def _decode(test: UnderTest, model: Any, case: Case, tokens: list[list[int]], steps: int) -> Answered:
    began = time.perf_counter()
    out = model(torch.tensor(case.prompts, device=test.where), use_cache=True, logits_to_keep=1)
    first_s, steps_s = _until_chosen(out, began), []
    until = began + test.scale.patience_s
    for column in range(steps):
        started = time.perf_counter()
        if started > until and column >= test.scale.warm + FEW_STEPS:
            break
        ids = torch.tensor([[row[column]] for row in tokens], device=test.where)
        out = model(ids, past_key_values=out.past_key_values, use_cache=True)
        steps_s.append(_until_chosen(out, started))
    return Answered(first_s=first_s, steps_s=steps_s)


def _until_chosen(out: Any, began: float) -> float:
    """Choosing waits for the GPU."""
    out.logits[:, -1].argmax(-1).tolist()
    return time.perf_counter() - began


def _cases(scale: Scale, place: Path) -> list[Case]:
    vocabulary, rng = _config(place)["vocab_size"], random.Random(0)
    return [
        Case(prompts=_random_rows(rng, rows, scale.prompt, vocabulary), steps=scale.steps) for rows in scale.batches
    ]


def _drawn_tokens(scale: Scale, folder: Path, model: str, place: Path) -> list[list[list[int]]]:
    """Those that ExpertFlow drew with every expert resident; random ones if it has not run."""
    drawn = result_of(folder, f"{model}-ours-{DRAWN_BY}")
    if drawn is not None:
        return [row["tokens"] for row in drawn["rows"]]
    vocabulary, rng = _config(place)["vocab_size"], random.Random(1)
    return [_random_rows(rng, rows, scale.steps, vocabulary) for rows in scale.batches]


def _random_rows(rng: random.Random, rows: int, length: int, vocabulary: int) -> list[list[int]]:
    return [[rng.randrange(3, vocabulary) for _ in range(length)] for _ in range(rows)]


def _config(place: Path) -> dict[str, Any]:
    return json.loads((place / "config.json").read_text())


def _model_folder(folder: Path, model: str) -> Path:
    made = result_of(folder, f"{model}-model")
    if made is None:
        raise RuntimeError(f"model {model} was not made")
    return Path(made["folder"])
