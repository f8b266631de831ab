#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with torch 2.13.0)
# Expected:  the example in the docstring of DbrxConfig makes a model, and clip_qkv, which is optional, may stay unset.
# Happens:   the example raises AttributeError, because DbrxAttentionConfig has no rope_theta. With rope_theta given,
#            the forward raises RuntimeError: without clip_qkv it calls clamp(min=None, max=None).
# What to do: state both in attn_config: {"rope_theta": 10000.0, "clip_qkv": 8.0}. A large clip_qkv stands for none.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 transformers==5.23.0 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import DbrxConfig, DbrxModel


def outcome(**options):
    """Return the shape of the example's output with further options, or its error."""
    try:
        model = DbrxModel(DbrxConfig(n_layers=2, d_model=256, n_heads=8, vocab_size=128, **options))
        return str(list(model(torch.arange(4)[None]).last_hidden_state.shape))
    except (AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


ffn = {"hidden_size": 256, "ffn_hidden_size": 64}
example = outcome()
unclipped = outcome(attn_config={"rope_theta": 10000.0}, ffn_config=ffn)
both = outcome(attn_config={"rope_theta": 10000.0, "clip_qkv": 8.0}, ffn_config=ffn)
print("transformers", transformers.__version__)
print("the docstring's example:     ", example)
print("with rope_theta:             ", unclipped)
print("with rope_theta and clip_qkv:", both)
stated = example.startswith("AttributeError") and unclipped.startswith("RuntimeError") and both == "[1, 4, 256]"
raise SystemExit(0 if stated else 1)
PYTHON
