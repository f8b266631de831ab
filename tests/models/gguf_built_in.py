"""The built-in model as a GGUF file, with its tokenizer and chat template, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import expertflow
import gguf
import torch
from expertflow.tests.models.gguf_files import write_gguf
from transformers import AutoModelForCausalLM

BUILT_IN = Path(expertflow.__file__).parent / "examples" / "model"


def write_built_in(file: Path) -> Path:
    """Write the built-in model; matrices keep their bfloat16, so nothing is lost."""
    model = AutoModelForCausalLM.from_pretrained(BUILT_IN, dtype=torch.bfloat16)
    return write_gguf(file, model, lambda name: "BF16", _write_vocabulary)


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    stated: dict[str, Any] = json.loads((BUILT_IN / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = stated["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in stated["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stated["model"]["merges"]])
    writer.add_chat_template((BUILT_IN / "chat_template.jinja").read_text())
