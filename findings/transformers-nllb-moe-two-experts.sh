#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with torch 2.13.0)
# Expected:  an NLLB-MoE block sends every token to the two experts that the router picked for it.
# Happens:   only expert_0 and expert_1 ever compute, whatever the router picks. NllbMoeExperts takes the zeros and ones
#            of the router's mask for expert numbers. The weights of all other experts change nothing.
# What to do: replace NllbMoeExperts.forward by a sum over experts, each times its column of router_probs, as below.
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
from transformers import NllbMoeConfig, NllbMoeModel

torch.manual_seed(0)
sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
steps = {"encoder_sparse_step": 1, "decoder_sparse_step": 1}
config = NllbMoeConfig(vocab_size=128, d_model=32, num_experts=8, init_std=0.2, **sizes, **heads, **steps)
block = NllbMoeModel(config).eval().encoder.layers[0].ffn
hidden = torch.randn(1, 64, 32)


def rows_changed_by_doubling(run):
    """Return, for each expert, how many of the 64 tokens change when its output weights are doubled."""
    before, counts = run(), []
    for number in range(config.num_experts):
        weight = block.experts[f"expert_{number}"].fc2.weight
        kept = weight.clone()
        weight.mul_(2)
        counts.append(int((run() != before).any(-1).sum()))
        weight.copy_(kept)
    return counts


def sum_over_experts():
    """Return what the router asks for: each expert's output times its own probability."""
    _, probs, _ = block.router(hidden[0])
    return sum(probs[:, e, None] * block.experts[f"expert_{e}"](hidden[0]) for e in range(config.num_experts))


with torch.no_grad():
    picked = (block.router(hidden[0])[1] > 0).sum(0).tolist()
    library, plain = rows_changed_by_doubling(lambda: block(hidden)), rows_changed_by_doubling(sum_over_experts)
print("transformers", transformers.__version__)
print("tokens that the router gives to each expert:          ", picked)
print("tokens that each expert's weights change, the library:", library)
print("the same, with a plain sum over the experts:          ", plain)
raise SystemExit(0 if library == [64, 64, 0, 0, 0, 0, 0, 0] and plain == picked and min(picked) > 0 else 1)
PYTHON
