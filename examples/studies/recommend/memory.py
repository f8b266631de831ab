"""Peak memory of one batch of each model, each in a process of its own: `python -m ….memory NAME BATCH WIDTH ITEMS`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import torch

from .ctr.fields import FieldTable
from .ctr.models import MIXTURES, NAMES, make_model
from .ctr.training import Pairs
from .speed import grown_model, weight_bytes
from .stream import choices
from .xsmoe.model import HISTORY

XSMOE = "XSMoE "
EXPERTS = 8


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one model for one batch: items encoded by XSMoE, pairs scored by a baseline."""

    model: str
    batch: int
    weight_bytes: int
    peak_bytes: int
    """Growth of the process's largest size by the first batch."""


def names() -> list[str]:
    """Return the models to measure: XSMoE by active experts, and the baselines."""
    return [XSMOE + name for name in choices() if "renormalised" not in name and name != "k=8"] + [*NAMES, *MIXTURES]


def measure_apart(name: str, batch: int, width: int, items: int) -> Peak:
    """Measure one model in a fresh process. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", f"{__package__}.memory", name, str(batch), str(width), str(items)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    return msgspec.convert(json.loads(done.stdout), Peak)


@torch.no_grad()
def measure_here(name: str, batch: int, width: int, items: int) -> Peak:
    """Run one batch of one model in this process."""
    if name.startswith(XSMOE):
        model, active = grown_model(width, EXPERTS), choices()[name.removeprefix(XSMOE)]
        states = torch.randn(2, 3, batch, width)
        before = _largest_bytes()
        model.encode_items(states, active)
    else:
        columns = FieldTable({}, {"item": torch.arange(1, items + 1)}, with_history=True)
        model = make_model(name, columns).eval()
        pairs = Pairs(torch.zeros(batch, dtype=torch.int64), torch.randint(items, (batch,)), torch.zeros(batch))
        histories = torch.randint(items, (batch, HISTORY))
        before = _largest_bytes()
        model(columns.batch(pairs.users, pairs.items, histories))
    return Peak(model=name, batch=batch, weight_bytes=weight_bytes(model), peak_bytes=_largest_bytes() - before)


def _largest_bytes() -> int:
    """Return the largest size of this program. `ru_maxrss` would count the process that started it as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    asked, batch_size, states_width, item_count = sys.argv[1:]
    peak = measure_here(asked, int(batch_size), int(states_width), int(item_count))
    sys.stdout.write(msgspec.json.encode(peak).decode())
