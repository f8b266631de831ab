#!/usr/bin/env bash
# Package:   torch 2.13.0 (CPU)
# Expected:  an element-wise function gives a value the same result wherever in a tensor it stands.
# Happens:   silu, sigmoid and softplus in float32 give some values another last bit in a batch than in a row of their
#            own, where the row length is no multiple of the vector width: the last elements of a tensor go through
#            another implementation. tanh and exp do not. With several threads the same happens at the threads' borders.
# What to do: for bit-identical rows give each row a tensor of its own, or lengths that are multiples of 32.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional

torch.set_num_threads(1)
FUNCTIONS = {
    "silu": functional.silu, "sigmoid": torch.sigmoid, "softplus": functional.softplus,
    "tanh": torch.tanh, "exp": torch.exp,
}


def differing(function, width):
    """Return how many elements of a batch of 64 rows have other bits than in a row alone."""
    batch = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    together = function(batch)
    return sum(int((function(row.clone()) != whole).sum()) for row, whole in zip(batch, together, strict=True))


print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
odd = {name: differing(function, 1021) for name, function in FUNCTIONS.items()}
even = {name: differing(function, 1024) for name, function in FUNCTIONS.items()}
print("elements of 64 rows that differ, rows of 1021:", odd)
print("elements of 64 rows that differ, rows of 1024:", even)
depends = all(odd[name] for name in ("silu", "sigmoid", "softplus"))
raise SystemExit(0 if depends and not odd["tanh"] + odd["exp"] + sum(even.values()) else 1)
PYTHON
