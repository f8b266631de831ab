"""Time decode steps of a model at several batch sizes: ExpertFlow, transformers resident on the GPU, and accelerate.

ExpertFlow runs in all its processes and draws the tokens; the others are given them. What on-demand LRU with as many
slots would have loaded meanwhile comes from a replay of the run's own routing.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from os import getpid
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from expertflow.runtime.replay.atomic import make_cache, replay
from expertflow.runtime.replay.source import ReplaySource, open_source
from expertflow.runtime.replay.steps import Uses
from expertflow.workers.loader.policies import make_policy
from transformers import AutoModelForCausalLM

from ..contenders.base import FEW_STEPS, Case, CaseResult, Task, TaskResult
from .results import result_of
from .under_test import Scale, UnderTest


def lru_bytes(trace: Path, batches: Sequence[int], warm: int) -> list[float]:
    """Return the bytes that LRU would load a decode step, for each case of a run, after all that came before it.

    Every case is a trial and a run proper, of as many sequences (`batches`), of which the first `warm` decode steps are
    left out.
    """
    source = open_source(trace, 0, 0)
    if source.log is None:
        raise RuntimeError("the trace says nothing of its steps")
    slots, expert_bytes = source.log.header.slots, source.log.header.expert_bytes
    return [
        expert_bytes * (_loads(source.uses, end, slots) - _loads(source.uses, first, slots)) / rounds
        for first, end, rounds in _windows(source, batches, warm)
    ]


def _windows(source: ReplaySource, batches: Sequence[int], warm: int) -> Iterator[tuple[int, int, float]]:
    """Yield the first of a case's steps, the one after its last, and how many tokens a row ran in them."""
    trace, decoded = source.trace, source.trace.decoded
    if decoded is None or trace.sequences != 2 * sum(batches):
        raise RuntimeError(f"the trace has {trace.sequences} sequences, not {2 * sum(batches)}")
    in_order = np.argsort(source.steps[trace.offsets[:-1]], kind="stable")
    at = 0
    for rows in batches:
        sequences = in_order[at + rows : at + 2 * rows]
        at += 2 * rows
        tokens = [_decoded_tokens(trace.offsets, decoded, sequence)[warm:] for sequence in sequences]
        steps = source.steps[np.concatenate(tokens)]
        yield int(steps.min()), int(steps.max()) + 1, len(steps) / rows


def _decoded_tokens(offsets: np.ndarray, decoded: np.ndarray, sequence: int) -> np.ndarray:
    """Return indices into the trace."""
    return offsets[sequence] + np.flatnonzero(decoded[offsets[sequence] : offsets[sequence + 1]])


def _loads(uses: Uses, steps: int, slots: int) -> int:
    """Count the loads of the first steps; an engine with a slot for every expert has filled them before."""
    if slots >= uses.layers * uses.experts:
        return 0
    head, policy = uses.head(steps), make_policy("lru", uses.layers, uses.experts, 1)  # it does not ask for top-k
    return replay(head, policy, make_cache("pool", uses, slots)).loads if steps else 0


def row_of(answered: CaseResult, batch: int, warm: int) -> dict[str, Any]:
    """Make a table row of a case, in milliseconds, without its first `warm` decode steps.

    A step is one token of each row.
    """
    times = [1e3 * each for each in answered.steps_s[warm:]]
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "batch": batch,
        "first_ms": 1e3 * answered.first_s,
        "step_ms": statistics.median(times),
        "step_quartiles_ms": [quartiles[0], quartiles[2]],
        "mean_step_ms": statistics.mean(times),
        "steps": len(times),
        "tokens": answered.tokens,
        "facts": answered.facts,
    }


DRAWN_BY = "100%"
SHARE_OF_ACCELERATE = 0.25
"""Share of the weights on the device: the others are on the host."""


def measure_ours(test: UnderTest, folder: Path, model: str, share: str) -> dict[str, Any]:
    """Run all stages, the whole model in the host store, and record the routing for the replay."""
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
        task = Task(model=str(place), cases=_cases(scale, place), options=options)
        task = msgspec.structs.replace(task, trial_steps=scale.warm, patience_s=scale.patience_s)
        answer = _run_ours(task)
        loads = lru_bytes(Path(trace), scale.batches, scale.warm)
    rows = [row_of(each, batch, scale.warm) for each, batch in zip(answer.cases, scale.batches, strict=True)]
    rows = [row | {"lru_bytes_per_step": each} for row, each in zip(rows, loads, strict=True)]
    return {"ready_s": answer.ready_s, "rows": rows}


def _run_ours(task: Task) -> TaskResult:
    guarded = [
        sys.executable,
        "-m",
        "expertflow.ipc.stage.run_with_parent",
        str(getpid()),
    ]  # it ends when we are killed
    command = [*guarded, "expertflow.benchmarks.contenders.ours"]
    ended = subprocess.run(command, input=msgspec.json.encode(task), capture_output=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr.decode()[-3000:])
    return msgspec.json.decode(ended.stdout.strip().splitlines()[-1], type=TaskResult)


def measure_library(test: UnderTest, folder: Path, model: str, kind: str) -> dict[str, Any]:
    """Run transformers in this process; `kind` resident, or accelerate, which has to be installed."""
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
    """Load with room for one layer more, which accelerate keeps free for those that come and go."""
    weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    kept = int((SHARE_OF_ACCELERATE + 1 / _config(place)["num_hidden_layers"]) * weights)
    options = test.offloading(kept, scratch) | {"experts_implementation": "grouped_mm"}
    return AutoModelForCausalLM.from_pretrained(place, dtype="auto", **options).eval()


def _run(test: UnderTest, model: Any, case: Case, tokens: list[list[int]]) -> CaseResult:
    """Decode a few steps first, which are not counted."""
    scale = test.scale
    _decode(test, model, case, tokens, scale.warm - 1)
    return _decode(test, model, case, tokens, min(map(len, tokens)) - 1)


def _decode(test: UnderTest, model: Any, case: Case, tokens: list[list[int]], steps: int) -> CaseResult:
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
    return CaseResult(first_s=first_s, steps_s=steps_s)


def _until_chosen(out: Any, began: float) -> float:
    """Return the seconds until the tokens are chosen, which waits for the GPU."""
    out.logits[:, -1].argmax(-1).tolist()
    return time.perf_counter() - began


def _cases(scale: Scale, place: Path) -> list[Case]:
    vocabulary, rng = _config(place)["vocab_size"], random.Random(0)
    return [
        Case(prompts=_random_rows(rng, rows, scale.prompt, vocabulary), steps=scale.steps) for rows in scale.batches
    ]


def _drawn_tokens(scale: Scale, folder: Path, model: str, place: Path) -> list[list[list[int]]]:
    """Return the tokens that ExpertFlow drew with every expert resident; random ones if it has not run."""
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
