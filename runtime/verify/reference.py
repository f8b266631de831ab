"""transformers' own logits (of NLLB-MoE: mended), each sequence alone and unpadded, teacher-forced."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...ipc.messages import NEUTRAL, GenerationSettings, Sampling
from ...ipc.shared.attachments import attachment_path, is_of_positions
from ...workers.model.architecture import load_config, model_class
from ...workers.model.encoder_decoder import logits_alone
from ...workers.model.families.registry import correct_blocks


class Sequence(msgspec.Struct):
    """One recorded sequence: its prompt, what was generated, our logits for each generated position, its images."""

    prompt_ids: list[int]
    token_ids: list[int]
    logits: list[Tensor]
    attachment: str = ""
    sampling: Sampling = Sampling()
    settings: GenerationSettings = NEUTRAL


def reference_logits(
    folder: Path,
    dtype: torch.dtype,
    sequences: Iterable[Sequence],
    attachments: Path,
    where: torch.device | None = None,
) -> list[Tensor]:
    """For each sequence float32 [generated, vocabulary], on the CPU: what transformers says at the positions that were
    generated, computed on the CPU or `where`. The images of a sequence are a file in `attachments`."""
    config = load_config(folder)
    kind = model_class(config)
    model = kind.from_pretrained(folder, config=config, dtype=dtype, experts_implementation="eager").eval()
    correct_blocks(model)
    model.to(where or torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return [_logits(model, sequence, attachments).float().cpu() for sequence in sequences]


def _logits(model: Any, sequence: Sequence, attachments: Path) -> Tensor:
    if not sequence.attachment:
        return logits_alone(model, sequence.prompt_ids, sequence.token_ids[:-1], model.device)
    images = load_file(attachment_path(attachments, sequence.attachment), device=str(model.device))
    return logits_with_images(model, sequence.prompt_ids, sequence.token_ids[:-1], images)


def logits_with_images(model: Any, prompt: list[int], following: list[int], images: dict[str, Tensor]) -> Tensor:
    """The same as `logits_alone`, one id at a time: given at once, a generated image token would count as an image.

    `images` are the processor's inputs. Positions are the model's own, none is given.
    """
    taken = inspect.signature(model.forward).parameters
    inputs = {name: value[None] if is_of_positions(name) else value for name, value in images.items() if name in taken}
    model.base_model.rope_deltas = None  # of the sequence before
    out = model(input_ids=torch.tensor([prompt], device=model.device), **inputs, use_cache=True)
    rows = [out.logits[0, -1]]
    for token in following:
        ids = torch.tensor([[token]], device=model.device)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1])
    return torch.stack(rows)
