"""Applies a model's generation settings by transformers' own processors, as its greedy `generate` does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ...workers.checkpoint.generation import FILE
from ...workers.model.architecture import build_on_meta, load_config
from ...workers.model.encoder_decoder import decoder_start
from .reference import Sequence


class ReferenceProcessors:
    """What transformers makes of logits before it chooses a token."""

    def __init__(self, folder: Path) -> None:
        self._config = load_config(folder)
        self._model: Any = build_on_meta(self._config, torch.float32)
        self._stated = _generation_config(folder)

    def scores(self, sequence: Sequence, logits: Tensor) -> Tensor:
        """Return logits [generated, vocabulary] of a sequence as greedy decoding sees them, in float32."""
        rows = [self._row(sequence, index, each) for index, each in enumerate(logits.float().cpu())]
        return torch.stack(rows)

    def _row(self, sequence: Sequence, index: int, logits: Tensor) -> Tensor:
        before = [decoder_start(self._config)] if self._config.is_encoder_decoder else sequence.prompt_ids
        ids = torch.tensor([before + sequence.token_ids[:index]])
        return self._processors(sequence, len(before))(ids, logits[None].clone())[0]

    def _processors(self, sequence: Sequence, start: int) -> Any:
        settings = sequence.settings
        config = GenerationConfig.from_dict(self._stated.to_dict())
        config.eos_token_id, config.max_new_tokens = list(settings.eos_ids) or None, settings.max_new_tokens
        config.forced_bos_token_id = settings.forced_bos_token_id
        config.do_sample = False
        if self._config.is_encoder_decoder:
            config.decoder_start_token_id = decoder_start(self._config)
        prompt = torch.tensor([sequence.prompt_ids])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about combinations of settings, not about values
            self._model._prepare_special_tokens(config, device="cpu")
            self._model._prepare_generated_length(config, True, True, "input_ids", start, prompt)
            mask = {"attention_mask": torch.ones(1, start, dtype=torch.long)}
            return self._model._get_logits_processor(config, start, prompt, device="cpu", model_kwargs=mask)


def _generation_config(folder: Path) -> GenerationConfig:
    if (folder / FILE).is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
