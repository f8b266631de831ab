"""The reference: transformers' own logits, teacher-forced, each sequence alone and unpadded, and its logits processors.

NLLB-MoE is corrected first (`families.registry.mend`).
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ...ipc.messages import NEUTRAL, GenerationSettings, Sampling
from ...ipc.shared.attachments import attachment_path, is_of_positions
from ...workers.checkpoint.generation import FILE
from ...workers.checkpoint.gguf.description import read_description
from ...workers.model.architecture import build_on_meta, load_config, model_class
from ...workers.model.encoder_decoder import decoder_start, logits_alone
from ...workers.model.families.registry import correct_blocks
from ...workers.model.gguf.skeleton_tensors import lazy_tensors


class Sequence(msgspec.Struct):
    """A recorded sequence: prompt and generated ids, our logits [vocabulary] a generated position, its images."""

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
    """Return transformers' logits at the generated positions: float32 [generated, vocabulary] a sequence, on the CPU.

    They are computed in `dtype`, on the CPU or on `where`. The images of a sequence are a file in `attachments`.
    """
    model = load_reference(folder, dtype)
    correct_blocks(model)
    model.to(where or torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return [_logits(model, sequence, attachments).float().cpu() for sequence in sequences]


def load_reference(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return transformers' model of a folder, everything resident; of a GGUF file with all its tensors dequantised."""
    config = load_config(folder)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "experts_implementation": "eager"}
    if described := read_description(folder):
        tensors = lazy_tensors(described, config.to_dict(), with_experts=True)
        return model_class(config).from_pretrained(None, state_dict=tensors, **options).eval()
    return model_class(config).from_pretrained(folder, **options).eval()


def _logits(model: Any, sequence: Sequence, attachments: Path) -> Tensor:
    if not sequence.attachment:
        return logits_alone(model, sequence.prompt_ids, sequence.token_ids[:-1], model.device)
    images = load_file(attachment_path(attachments, sequence.attachment), device=str(model.device))
    return logits_with_images(model, sequence.prompt_ids, sequence.token_ids[:-1], images)


def logits_with_images(model: Any, prompt: list[int], following: list[int], images: dict[str, Tensor]) -> Tensor:
    """Return logits [generated, vocabulary] as `logits_alone` does, but from one id at a time.

    In one pass a generated image token would count as an image. `images` are the processor's inputs; the model finds
    positions itself.
    """
    parameters = inspect.signature(model.forward).parameters
    images = {name: value for name, value in images.items() if name in parameters}
    inputs = {name: value[None] if is_of_positions(name) else value for name, value in images.items()}
    model.base_model.rope_deltas = None  # left by the previous sequence
    out = model(input_ids=torch.tensor([prompt], device=model.device), **inputs, use_cache=True)
    rows = [out.logits[0, -1]]
    for token in following:
        ids = torch.tensor([[token]], device=model.device)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


class ReferenceProcessors:
    """A model's generation settings, applied by transformers' logits processors as its greedy `generate` does.

    What a request asks for goes before them. Its biases and its penalties of the output are no settings of
    transformers; they are added by their definition.
    """

    def __init__(self, folder: Path) -> None:
        self._config = load_config(folder)
        self._model: Any = build_on_meta(self._config, torch.float32)
        self._stated = _generation_config(folder)

    def scores(self, sequence: Sequence, logits: Tensor) -> Tensor:
        """Return logits [generated, vocabulary] after the processors, float32 of the same shape, on the CPU."""
        rows = [self._row(sequence, index, row) for index, row in enumerate(logits.float().cpu())]
        return torch.stack(rows)

    def _row(self, sequence: Sequence, index: int, logits: Tensor) -> Tensor:
        before = [decoder_start(self._config)] if self._config.is_encoder_decoder else sequence.prompt_ids
        ids = torch.tensor([before + sequence.token_ids[:index]])
        scores = _add_biases(logits.clone(), sequence.sampling)
        scores = self._processors(sequence, len(before))(ids, scores[None])[0]
        return _penalise(scores, sequence.token_ids[:index], sequence.sampling)

    def _processors(self, sequence: Sequence, start: int) -> Any:
        settings = sequence.settings
        config = GenerationConfig.from_dict(self._stated.to_dict())
        config.eos_token_id, config.max_new_tokens = list(settings.eos_ids) or None, settings.max_new_tokens
        config.forced_bos_token_id = settings.forced_bos_token_id
        if sequence.sampling.repetition_penalty is not None:
            config.repetition_penalty = sequence.sampling.repetition_penalty
        if sequence.sampling.min_new_tokens is not None:
            config.min_length, config.min_new_tokens = 0, sequence.sampling.min_new_tokens
        config.do_sample = False
        if self._config.is_encoder_decoder:
            config.decoder_start_token_id = decoder_start(self._config)
        prompt = torch.tensor([sequence.prompt_ids])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about combinations of settings, not about values
            self._model._prepare_special_tokens(config, device="cpu")
            self._model._prepare_generated_length(config, True, True, "input_ids", start, prompt)
            mask = {"attention_mask": torch.ones(1, start, dtype=torch.long)}
            return self._model._get_logits_processor(config, start, prompt, device="cpu", model_kwargs=mask)


def _add_biases(scores: Tensor, sampling: Sampling) -> Tensor:
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    return scores


def _penalise(scores: Tensor, output_ids: list[int], sampling: Sampling) -> Tensor:
    """Subtract the penalties of the output, in float32 as compute does."""
    for token, count in Counter(output_ids).items():
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return scores


def _generation_config(folder: Path) -> GenerationConfig:
    if (folder / FILE).is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
