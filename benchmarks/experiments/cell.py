"""Run one cell: a fresh engine, a warm-up, then blocks of sequences that are the same for every system."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from expertflow import Client, Config, Supervisor
from expertflow.configs.user_cache import cache_folder

from ..counters import read_counters, subtract_counters
from .figures import Figures, Measured, figures_of
from .systems import Option, System

SETTLING_TOKENS = 80
"""New tokens of a sequence, within which ExpertFlow has tried one unit and two, predicting or not, grouping or not."""
PROMPT_CHARACTERS = 120


@dataclass(frozen=True)
class Work:
    """Say what every system does."""

    text: str
    """Text that prompts are cut from."""
    shared: dict[str, Option]
    """Options of all systems: the model, the tier, the link."""
    tokens: int
    """New tokens of a sequence."""
    warm_tokens: int
    blocks: int
    """Counted ones; each is a batch of sequences."""

    def prompts(self, block: int, rows: int) -> list[str]:
        """Return other prompts for every block, the same ones at every call."""
        rng = random.Random(f"{block} {rows}")
        starts = [rng.randrange(len(self.text) - PROMPT_CHARACTERS) for _ in range(rows)]
        return [self.text[start : start + PROMPT_CHARACTERS] for start in starts]


def run_cell(work: Work, system: System, files: dict[str, Path], slots: str, batch: int) -> tuple[Figures, Measured]:
    """Run a cell. Raises ExpertFlowError if the engine cannot do it."""
    options = work.shared | system.options | _trained(system, files)
    config = Config.load(system.preset, **options, expert_memory=slots, batch_size=batch)
    with Supervisor(config) as engine, Client(engine.address) as client:
        warm = max(work.warm_tokens, SETTLING_TOKENS * system.settles)
        _decode(client, work.prompts(-1, batch), warm, seed=0)
        measured = _measure(client, work, batch, forecast=config.predictor != "none")
    return figures_of(system.name, system.group, slots, batch, measured), measured


def _trained(system: System, files: dict[str, Path]) -> dict[str, Option]:
    if system.takes_path:
        return {"predictor": "path" if "path" in files else "table"}
    option = {"gates": "gates_file", "paper": "predictor_file"}.get(system.needs)
    return {option: str(files[system.needs])} if option else {}


def _measure(client: Client, work: Work, batch: int, forecast: bool) -> Measured:
    before, rates, generated, elapsed_s = read_counters(client), [], [], 0.0
    for block in range(work.blocks):
        started = time.perf_counter()
        tokens = _decode(client, work.prompts(block, batch), work.tokens, seed=1000 * (block + 1))
        took_s = time.perf_counter() - started
        rates.append(sum(map(len, tokens)) / took_s)
        generated += tokens
        elapsed_s += took_s
    after, snapshot = read_counters(client), client.stats()
    return Measured(
        rates,
        elapsed_s,
        subtract_counters(after, before),
        after["accuracy"] if forecast else None,
        _way(after),
        int(snapshot.facts["loader"]["slots"]),
        int(snapshot.facts["loader"]["slot_bytes"]),
        sum(snapshot.pss_bytes.values()),
        generated,
    )


def _way(counters: dict[str, float]) -> str:
    units = f"{counters['units_wanted']:.0f} unit{'s' * (counters['units_wanted'] > 1)}"
    extras = [name for name in ("prediction", "grouping") if counters[f"{name}_wanted"]]
    return ", ".join([units, *extras])


def _decode(client: Client, prompts: list[str], tokens: int, seed: int) -> list[list[int]]:
    """Draw tokens, since greedy text soon repeats itself."""
    done = client.generate(prompts, max_new_tokens=tokens, temperature=1.0, seed=seed, eos_ids=[])
    return [list(each.token_ids) for each in done]


LESSON_CHARACTERS = 60_000
"""Characters of text that gates learn from."""


def trained_gates(model: Path, text: str) -> Path:
    """Return the gates of this model; trained on a trace of `text` at the first call (about a minute)."""
    file = cache_folder() / f"gates-{model.name}.safetensors"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            _train_gates(model, text[:LESSON_CHARACTERS], Path(folder), file)
    return file


def _train_gates(model: Path, text: str, folder: Path, file: Path) -> None:
    lessons, trace = folder / "lessons.txt", str(folder / "trace")
    lessons.write_text(text)
    asked = ["trace", trace, "--model", str(model), "--text", str(lessons), "--hidden", "1", "--expert-memory", "100%"]
    _expertflow(*asked)
    _expertflow("train", trace, "--kind", "gates", "--out", str(file))


def _expertflow(*arguments: str) -> None:
    """Run the command, its tables and progress on stderr. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-P", "-m", "expertflow", *arguments], stdout=sys.stderr, check=True)
