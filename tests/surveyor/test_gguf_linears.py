"""Which linear layers of a GGUF model are stored as they are: those that the library's loader does not change."""

from __future__ import annotations

from typing import Any

import pytest
from expertflow.workers.checkpoint.gguf.block_types import TYPES
from expertflow.workers.checkpoint.gguf.container import Container, StoredBlocks
from expertflow.workers.checkpoint.gguf.description import StoredParameter
from expertflow.workers.surveyor.gguf.linears import whole_linears
from torch import nn

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
BLOCK_TYPES = {own.name: own for own in TYPES.values()}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj, self.lm_head = (nn.Linear(64, 32, bias=False) for _ in range(3))


def found(architecture: str, type_name: str = "Q4_0", **config: Any) -> set[str]:
    model = nn.Sequential(Attention())
    names = {"0.q_proj.weight": "blk.0.attn_q.weight", "0.o_proj.weight": "blk.0.attn_output.weight"}
    parameters = {name: StoredParameter([stored], [32, 64]) for name, stored in names.items()}
    own = BLOCK_TYPES[type_name]
    tensors = [StoredBlocks(stored, own, [32, 64], 0, own.count_bytes(32 * 64)) for stored in names.values()]
    containers: list[Any] = [Container(None, {"general.architecture": architecture}, tensors)]  # pyright: ignore
    linears = whole_linears(model, parameters, containers, HEADS | config)
    assert set(linears.values()) <= {type_name}
    return {name.split(".")[1] for name in linears}


def test_rows_that_the_loader_reorders_are_left_out() -> None:
    assert found("qwen3moe") == {"q_proj", "o_proj"}
    assert found("llama") == {"o_proj"}


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q4_1", "IQ4_XS"])
def test_types_without_a_kernel_are_left_out(type_name: str) -> None:
    assert found("qwen3moe", type_name) == set()
