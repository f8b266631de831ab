#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with torch 2.13.0)
# Expected:  with "weight_block_size": [128, 128] a weight of 192 rows has a block of 128 rows and one of 64. The
#            library's own FP8Linear allots 2 rows of scales to it.
# Happens:   loading with "dequantize": true ignores the stated size. It divides 192 rows by 2 scales and takes blocks
#            of 96 and 96, so rows 96 to 127 get the scale of the second block. There is no warning.
# What to do: dequantise such weights beforehand: repeat each scale 128 times and cut off what is beyond the last row.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import FP8Linear

torch.manual_seed(0)
folder, sizes = Path("model"), {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 192}
heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)

weights = {}
for name, tensor in load_file(folder / "model.safetensors").items():
    weights[name] = tensor
    if name.endswith("proj.weight"):
        grid = [-(-size // 128) for size in tensor.shape]
        weights[name] = torch.randn(tensor.shape).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.arange(1.0, grid[0] * grid[1] + 1).reshape(grid)
save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
settings = json.loads((folder / "config.json").read_text())
settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "dequantize": True}
(folder / "config.json").write_text(json.dumps(settings))

model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
name = "model.layers.0.mlp.up_proj.weight"
values, scales = weights[name].float(), weights[f"{name}_scale_inv"]
expected = values * scales.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)
wrong = (model.get_parameter(name) != expected).any(dim=1).nonzero().flatten().tolist()
allotted = list(FP8Linear(256, 192, block_size=(128, 128)).weight_scale_inv.shape)
print("transformers", transformers.__version__)
print("scales that FP8Linear allots to 192 x 256:", allotted, "and in the file:", list(scales.shape))
print("rows that differ from blocks of 128 rows: ", f"{wrong[0]} to {wrong[-1]}" if wrong else "none")
raise SystemExit(0 if wrong == list(range(96, 128)) and allotted == [2, 2] else 1)
PYTHON
