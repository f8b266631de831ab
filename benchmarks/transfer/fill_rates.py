"""Measure how fast slots fill with experts that are dequantised on the way or stay packed, against plain copies.

Shapes of Qwen3-30B-A3B (plain, block FP8, 4 bits) and gpt-oss-20b (plain, MXFP4), random bytes, direct reads. Kinds
take turns within a round, so that whatever else the machine does falls on all of them; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedConfig, Qwen3MoeConfig

from ..contenders.small import quantised_copy
from ..report import show_table
from .fills import fill_slots, touched_memory

Tensors = dict[str, torch.Tensor]

FP8_BLOCK, MXFP4_GROUP = 128, 32
PACKED = "packed"
IN_FLIGHT = 4
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "vocab_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 1,
    "dtype": "bfloat16",
}
"""Everything but the experts, which are of the real size."""
METHODS = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]},
    "mxfp4": {"quant_method": "mxfp4"},
}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and show; return one row a kind and number of threads."""
    with tempfile.TemporaryDirectory(prefix="fill-rates-", dir=arguments.folder) as scratch:
        folders = make_checkpoints(Path(scratch), arguments.experts)
        rows = [row for threads in arguments.threads for row in measure(folders, threads, arguments.rounds)]
    show(rows)
    return rows


def make_checkpoints(root: Path, experts: int) -> dict[str, Path]:
    """Make the checkpoints and return their folders by shape and kind."""
    qwen = Qwen3MoeConfig(hidden_size=2048, moe_intermediate_size=768, num_experts=experts, **SMALL)
    oss = GptOssConfig(hidden_size=2880, intermediate_size=2880, num_local_experts=experts // 4, **SMALL)
    made: dict[str, Path] = {}
    for shape, config, kind, change in (("qwen3-30b", qwen, "fp8", _to_fp8), ("gpt-oss-20b", oss, "mxfp4", _to_mxfp4)):
        for name in ("bf16", kind):
            made[f"{shape} {name}"] = root / f"{shape}-{name}"
            _save(config, made[f"{shape} {name}"])
        _quantise(made[f"{shape} {kind}"], METHODS[kind], change)
    made["qwen3-30b int4"] = root / "qwen3-30b-int4"
    quantised_copy(made["qwen3-30b bf16"], made["qwen3-30b int4"], 4)
    return made


def _save(config: PreTrainedConfig, folder: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    drawn = {name: torch.rand(tensor.shape).bfloat16() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=drawn)


def _quantise(folder: Path, method: dict[str, Any], change: Callable[[str, torch.Tensor], Tensors]) -> None:
    file = folder / "model.safetensors"
    changed: Tensors = {}
    for name, tensor in load_file(file).items():
        changed |= change(name, tensor) if ".experts." in name else {name: tensor}
    save_file(changed, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))


def _to_fp8(name: str, tensor: torch.Tensor) -> Tensors:
    grid = [-(-size // FP8_BLOCK) for size in tensor.shape]
    return {name: tensor.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.rand(grid)}


def _to_mxfp4(name: str, tensor: torch.Tensor) -> Tensors:
    if tensor.ndim != 3:
        return {name: tensor}
    experts, columns, rows = tensor.shape
    grid = [experts, rows, columns // MXFP4_GROUP]
    blocks = torch.randint(0, 256, [*grid, MXFP4_GROUP // 2], dtype=torch.uint8)
    return {f"{name}_blocks": blocks, f"{name}_scales": torch.randint(110, 128, grid, dtype=torch.uint8)}


def measure(folders: dict[str, Path], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row a kind: seconds an expert, bytes read and filled a second."""
    surveys = {kind: survey_checkpoint(str(folder)) for kind, folder in folders.items()}
    for kind, folder in folders.items():
        if not kind.endswith("bf16"):
            surveys[f"{kind} {PACKED}"] = survey_checkpoint(str(folder), experts_in=PACKED)
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in surveys}
    for number in range(rounds + 1):
        for kind, survey in surveys.items():
            spent = fill_seconds(survey, threads)
            if number:  # the first round brings memory and code in
                seconds[kind].append(spent)
    return [_row(kind, threads, survey, seconds[kind]) for kind, survey in surveys.items()]


def fill_seconds(survey: Survey, threads: int) -> tuple[float, float]:
    """Return wall and CPU seconds of an expert, when a real transfer engine fills slots with all of them."""
    experts = [(0, expert) for expert in range(survey.expert_count)]
    memory = touched_memory(IN_FLIGHT * survey.stride_bytes)
    spent = fill_slots(survey, experts, memory, threads, IN_FLIGHT)
    return spent.wall_s / survey.expert_count, spent.cpu_s / survey.expert_count


def _row(kind: str, threads: int, survey: Survey, spent: list[tuple[float, float]]) -> dict[str, Any]:
    seconds, cpu_seconds = (statistics.median(each) for each in zip(*spent, strict=True))
    stored = survey.stored_expert_bytes
    return {
        "kind": kind,
        "threads": threads,
        "expert_ms": 1e3 * seconds,
        "expert_cpu_ms": 1e3 * cpu_seconds,
        "stored_bytes": stored,
        "slot_bytes": survey.expert_bytes,
        "read_bytes_per_s": stored / seconds,
        "filled_bytes_per_s": survey.expert_bytes / seconds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    plain = {(row["kind"].split()[0], row["threads"]): row for row in rows if row["kind"].endswith("bf16")}
    pairs = [(row, plain[row["kind"].split()[0], row["threads"]]) for row in rows]
    shown = [
        {
            "experts": row["kind"],
            "threads": row["threads"],
            "ms an expert": f"{row['expert_ms']:.1f}",
            "CPU ms": f"{row['expert_cpu_ms']:.1f}",
            "read GB/s": f"{row['read_bytes_per_s'] / 1e9:.2f}",
            "to plain (P4)": f"{row['read_bytes_per_s'] / own['read_bytes_per_s']:.2f}",
            "filled GB/s": f"{row['filled_bytes_per_s'] / 1e9:.2f}",
            "experts a second, to plain": f"{own['expert_ms'] / row['expert_ms']:.2f}",
        }
        for row, own in pairs
    ]
    show_table("experts that fill slots", shown)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--experts", type=int, default=32, help="of the small shape; a quarter of the large one")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the files are written (on the disk to measure)")
