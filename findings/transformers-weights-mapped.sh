#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with torch 2.13.0 and safetensors 0.8.0), Linux, CPU
# Expected:  from_pretrained copies the weights; the loaded model does not depend on its file any more.
# Happens:   parameters whose dtype is the file's stay maps of model.safetensors. Other bytes of the same length that
#            are written into the file afterwards change the weights of the running model.
# What to do: replace a checkpoint that is in use by renaming a new file over it; never write into the old one. Or copy
#            after loading: for each in model.parameters(): each.data = each.data.clone()
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
folder, sizes = Path("model"), {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
kept, copied = LlamaForCausalLM.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
for each in copied.parameters():
    each.data = each.data.clone()
before = {name: tensor.clone() for name, tensor in kept.named_parameters()}

file = folder / "model.safetensors"
length = file.stat().st_size
with file.open("r+b") as opened:
    start = 8 + int.from_bytes(opened.read(8), "little")
    opened.seek(start)
    opened.write(bytes(length - start))  # zeros for every weight; the header and the length stay
with safe_open(file, "pt") as read:
    assert set(read.keys()) == set(before) and file.stat().st_size == length


def count_changed(model):
    return sum(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


print("transformers", transformers.__version__)
print(f"tensors of the running model that changed with the file: {count_changed(kept)} of {len(before)}")
print(f"the same, with tensors that were copied after loading:   {count_changed(copied)} of {len(before)}")
raise SystemExit(0 if count_changed(kept) == len(before) and count_changed(copied) == 0 else 1)
PYTHON
