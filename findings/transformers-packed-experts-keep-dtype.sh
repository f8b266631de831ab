#!/usr/bin/env bash
# Package:   transformers 5.23.0 (with torch 2.13.0, compressed-tensors 0.20.1)
# Expected:  from_pretrained(dtype=torch.float32) of a checkpoint with 4-bit experts (pack-quantized, scales in bfloat16)
#            gives experts in float32, as it does for the same checkpoint unquantised.
# Happens:   the experts stay in the type of their scales, bfloat16, while all other weights are float32. There is no
#            warning; the first forward pass raises a RuntimeError on two types in one product.
# What to do: load in the type of the scales and convert afterwards: from_pretrained(..., dtype=torch.bfloat16).float().
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
packages="torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 compressed-tensors==0.20.1"
"$venv/bin/python" -m pip install -q $packages || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import json
from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import OlmoeConfig, OlmoeForCausalLM

torch.manual_seed(0)
folder, experts = Path("model"), {"num_experts": 4, "num_experts_per_tok": 2}
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
OlmoeForCausalLM(OlmoeConfig(**sizes, **heads, **experts)).bfloat16().save_pretrained(folder)

arguments = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
group = {"targets": ["re:.*experts.*"], "weights": arguments, "format": "pack-quantized"}
scheme, packer = QuantizationScheme.model_validate(group), BaseCompressor.get_value_from_registry("pack-quantized")
stored = {}
for name, tensor in load_file(folder / "model.safetensors").items():
    if ".experts." not in name:
        stored[name] = tensor
        continue
    scales = tensor.view(len(tensor), -1, 32).abs().amax(-1) / 7.5
    parts = packer.compress({"weight": tensor, "weight_scale": scales}, scheme)
    stored |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
settings = json.loads((folder / "config.json").read_text())
quantised = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
settings["quantization_config"] = {**quantised, "config_groups": {"experts": group}, "ignore": ["lm_head"]}
(folder / "config.json").write_text(json.dumps(settings))

model = OlmoeForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
layer = model.model.layers[0]
types = {"experts": layer.mlp.experts.down_proj.dtype, "attention": layer.self_attn.q_proj.weight.dtype}
try:
    model(torch.tensor([[1, 2, 3]]))
    raised = "nothing"
except RuntimeError as error:
    raised = f"RuntimeError: {error}"
print("transformers", transformers.__version__)
print("asked for float32:", types)
print("a forward pass raises", raised)
is_so = types == {"experts": torch.bfloat16, "attention": torch.float32} and raised.startswith("RuntimeError")
raise SystemExit(0 if is_so else 1)
PYTHON
