"""Runs forced tokens through resident transformers and prints its figures as JSON. Started by contenders.py."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

WARM_STEPS = 4


def main() -> None:
    order = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(
        order["folder"], dtype="auto", experts_implementation=order["backend"]
    ).eval()
    with torch.inference_mode():
        decode_ms = _decode(model, order["prompts"], order["tokens"])
        rate = _prefill(model, order["long"])
    figures = {"decode_ms": decode_ms, "prefill_tokens_per_s": rate, "pss_peak_bytes": _pss_bytes()}
    sys.stdout.write(json.dumps(figures) + "\n")


def _decode(model: Any, prompts: list[list[int]], tokens: list[list[int]]) -> float:
    cache = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1).past_key_values
    times = []
    for column in range(len(tokens[0]) - 1):
        ids = torch.tensor([[row[column]] for row in tokens])
        started = time.perf_counter()
        model(ids, past_key_values=cache, use_cache=True).logits.argmax(-1)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[WARM_STEPS:])


def _prefill(model: Any, prompt: list[int]) -> float:
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        rates.append(len(prompt) / (time.perf_counter() - started))
    return statistics.median(rates)


def _pss_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
