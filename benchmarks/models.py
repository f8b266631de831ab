"""Make the models that are measured: the widened built-in model, model R (random, OLMoE architecture, 3.3 GB) and
model Q (random, the layers of Qwen3-30B-A3B, 15 GB).

python -m expertflow.benchmarks.models r widened q       make these and say where they are
python -m expertflow.benchmarks.models q --layers 4      with fewer layers, 1.2 GB each
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from expertflow.configs.user_cache import cache_folder
from expertflow.runtime.demo.widened import widened_copy
from expertflow.workers.checkpoint.survey import Survey

MODEL_R = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
Q_LAYERS = 12
MODEL_Q = {
    "vocab_size": 8192,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""Qwen3-30B-A3B's layers (its config.json), a smaller vocabulary."""
DEVIATION = 0.02
"""Of random weights, as transformers initialises them; norms are 1."""
EXAMPLES = Path(__file__).parents[1] / "examples"


def model_r() -> Path:
    """Return the folder of model R; made at the first call (about a minute, 3.3 GB)."""
    folder = cache_folder() / "model-r"
    if not folder.exists():
        _save_random(folder)
    return folder


def _save_random(folder: Path) -> None:
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(**MODEL_R, dtype="bfloat16")
    model = OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, max_shard_size="1GB")
    partial.rename(folder)


def model_q(layers: int = Q_LAYERS, base: Path | None = None) -> Path:
    """Return the folder of model Q with so many layers; made at the first call (1.2 GB a layer, a file each).

    It lies in `base`, or in the user's cache.
    """
    folder = (base or cache_folder()) / f"model-q-{layers}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_model_q(partial, layers)
        partial.rename(folder)
    return folder


def _write_model_q(folder: Path, layers: int) -> None:
    """Write a layer at a time, so that no more than one is in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(**MODEL_Q, num_hidden_layers=layers, dtype="bfloat16")
    config.architectures = [Qwen3MoeForCausalLM.__name__]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    files: dict[str, str] = {}
    shapes = {"rest": _rest_shapes(config)} | {f"layer-{i:02d}": _layer_shapes(config, i) for i in range(layers)}
    for name, shapes_of_file in shapes.items():
        tensors = {tensor: _random_tensor(shape) for tensor, shape in shapes_of_file.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, f"{name}.safetensors")
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random_tensor(shape: tuple[int, ...]) -> Any:
    """Return a bfloat16 matrix of random weights, or a norm's vector of ones."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, DEVIATION)


def _rest_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    tokens = (config.vocab_size, config.hidden_size)
    return {
        "model.embed_tokens.weight": tokens,
        "lm_head.weight": tokens,
        "model.norm.weight": (config.hidden_size,),
    }


def _layer_shapes(config: Any, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one layer under their names in the checkpoint."""
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate": (config.num_experts, hidden),
    }
    inner = config.moe_intermediate_size
    for expert in range(config.num_experts):
        shapes[f"mlp.experts.{expert}.gate_proj"] = shapes[f"mlp.experts.{expert}.up_proj"] = (inner, hidden)
        shapes[f"mlp.experts.{expert}.down_proj"] = (hidden, inner)
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def widened() -> Path:
    """Return the folder of the widened built-in model (0.9 GB of experts), made at first and shared with the demo."""
    return widened_copy(EXAMPLES / "model", cache_folder())


def survey_of(folder: Path) -> Survey:
    """Return the survey of a model with this machine's kernel table, as an engine makes it."""
    from expertflow.workers.kernels.making import AUTO, TableMaker
    from expertflow.workers.surveyor.surveyor import survey_folder

    return survey_folder(folder, make_table=TableMaker(AUTO, lambda progress: None).make)


def folder_of(name: str) -> Path:
    """Return the folder of a model.

    `r`; `q`, or `q-N` with N layers; `widened`, or `widened-N` by the factor N (512: 7.5 GB of experts).
    """
    kind, _, number = name.partition("-")
    if kind == "r":
        return model_r()
    if kind == "q":
        return model_q(int(number or Q_LAYERS))
    return widened_copy(EXAMPLES / "model", cache_folder(), int(number)) if number else widened()


def held_out_prompts(count: int, characters: int = 160) -> list[str]:
    """Return stretches of the held-out text, the same ones at every call."""
    text = (EXAMPLES / "held_out.txt").read_text()
    rng = random.Random(1)
    return [text[start : start + characters] for start in (rng.randrange(len(text) - characters) for _ in range(count))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=("r", "widened", "q"))
    parser.add_argument("--layers", type=int, default=Q_LAYERS, help="of model q")
    arguments = parser.parse_args()
    for name in arguments.models:
        sys.stdout.write(f"{folder_of(f'q-{arguments.layers}' if name == 'q' else name)}\n")


if __name__ == "__main__":
    main()
