#!/usr/bin/env bash
# Package:   torch 2.13.0 (CPU)
# Expected:  columns that the mask excludes change nothing in scaled_dot_product_attention: their weight is zero.
# Happens:   in float32 a row that is padded on the left by 1, 3 or 8 masked columns gets other last bits than the row
#            without padding; by 16 or 32 columns it does not: sums run over blocks of columns, and padding moves the
#            row's columns to other places in them. A mask that excludes nothing changes no bit.
# What to do: expect batched, left-padded generation to differ in last bits; where it must not, pad by multiples of 16
#            or run rows unpadded.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

torch.set_num_threads(1)
torch.manual_seed(0)
query, key, value = torch.randn(1, 4, 1, 64), torch.randn(1, 4, 37, 64), torch.randn(1, 4, 37, 64)


def padded(pad):
    """Return the attention of the row with `pad` masked columns before it."""
    nothing = torch.zeros(1, 4, pad, 64)
    mask = torch.ones(1, 1, 1, pad + 37, dtype=torch.bool)
    mask[..., :pad] = False
    return attention(query, torch.cat([nothing, key], 2), torch.cat([nothing, value], 2), attn_mask=mask)


alone = attention(query, key, value)
differing = {pad: int((padded(pad) != alone).sum()) for pad in (0, 1, 3, 8, 16, 32)}
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
print("of 256 values that differ from the row alone, by columns of padding:", differing)
moved = all(differing[pad] for pad in (1, 3, 8))
raise SystemExit(0 if moved and not differing[0] + differing[16] + differing[32] else 1)
PYTHON
