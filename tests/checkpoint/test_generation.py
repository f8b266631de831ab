"""What a folder says about generation: ends of text as transformers takes them, what is refused, wrong types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import CheckpointError
from expertflow.ipc.messages import NEUTRAL, GenerationSettings
from expertflow.workers.checkpoint.generation import FILE, read_generation
from transformers import GenerationConfig

VOCABULARY = 100


def write(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "olmoe"} | config))
    if generation is not None:
        (folder / FILE).write_text(json.dumps(generation))
    return folder


def theirs(folder: Path) -> GenerationConfig:
    """As `from_pretrained` of a model finds it."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)


PLACES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "nowhere": ({}, None),
    "configuration": ({"eos_token_id": 5}, None),
    "list": ({"eos_token_id": [5, 6]}, None),
    "top of a multimodal one": ({"eos_token_id": [1, 106], "text_config": {"eos_token_id": 7}}, None),
    "its text model": ({"text_config": {"eos_token_id": 7}}, None),
    "its text model, null above": ({"eos_token_id": None, "text_config": {"eos_token_id": [7, 8]}}, None),
    "decoder": ({"decoder": {"eos_token_id": 9}, "text_config": {"eos_token_id": 7}}, None),
    "generation alone": ({}, {"eos_token_id": [3, 4]}),
    "generation and configuration": ({"eos_token_id": 5}, {"eos_token_id": 6}),
    "none in generation": ({"eos_token_id": 5, "text_config": {"eos_token_id": 7}}, {"temperature": 0.6}),
    "null in generation": ({"eos_token_id": 5}, {"eos_token_id": None}),
    "saved from a configuration": ({}, {"_from_model_config": True, "eos_token_id": 2, "bos_token_id": 1}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", PLACES)
def test_ends_are_those_of_transformers(place: str, tmp_path: Path) -> None:
    """Too few, and a text runs on to its limit; too many, and it is cut."""
    expected = theirs(write(tmp_path, *PLACES[place])).eos_token_id
    expected = [] if expected is None else expected if isinstance(expected, list) else [expected]
    assert read_generation(tmp_path, VOCABULARY).eos_ids == expected
    assert read_generation(tmp_path, VOCABULARY, "ignore").eos_ids == expected


@pytest.mark.parametrize("end", [-1, [-1]])
def test_a_negative_end_is_never_met(end: object, tmp_path: Path) -> None:
    """Transformers warns, and runs on."""
    assert read_generation(write(tmp_path, {}, {"eos_token_id": end}), VOCABULARY).eos_ids == []


STATED: dict[str, Any] = {
    "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "min_new_tokens": 0,
    "min_length": 4, "bad_words_ids": [[1, 2], [3]], "forced_eos_token_id": [4], "forced_bos_token_id": 8,
    "exponential_decay_length_penalty": [3, 1.5], "sequence_bias": [[[1], 2.0]], "remove_invalid_values": True,
    "begin_suppress_tokens": [9], "encoder_repetition_penalty": 2.0, "encoder_no_repeat_ngram_size": 2,
    "renormalize_logits": True,
}  # fmt: skip


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_every_setting_is_read(where: str, tmp_path: Path) -> None:
    """Old models have them in config.json."""
    in_config = where == "config.json"
    folder = write(tmp_path, STATED if in_config else {"repetition_penalty": 9.0}, None if in_config else STATED)
    settings = read_generation(folder, VOCABULARY).settings
    assert {name for name in STATED if getattr(settings, name) == getattr(NEUTRAL, name)} == set()
    assert settings.bad_words_ids == ((1, 2), (3,)) and settings.forced_eos_token_id == (4,)
    assert read_generation(folder, VOCABULARY, "ignore").settings == GenerationSettings()


def test_what_only_sampling_or_beams_read_changes_nothing(tmp_path: Path) -> None:
    """Greedy `generate` does not look at them either."""
    stated = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9}
    stated |= {"length_penalty": 2.0, "early_stopping": True, "num_beams": 1, "max_length": 7}
    assert read_generation(write(tmp_path, {}, stated), VOCABULARY).settings == NEUTRAL


REFUSED: dict[str, Any] = {
    "num_beams": 4, "num_return_sequences": 2, "penalty_alpha": 0.6, "dola_layers": "low", "constraints": [1],
    "force_words_ids": [[1]], "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0}, "token_healing": True,
    "stop_strings": ["x"], "max_time": 3.0, "cache_implementation": "quantized",
}  # fmt: skip
WRONG: dict[str, Any] = {
    "eos_token_id": "</s>", "forced_bos_token_id": [1], "repetition_penalty": "1.2", "suppress_tokens": 5,
    "bad_words_ids": [1], "no_repeat_ngram_size": 2.5, "min_length": True, "begin_suppress_tokens": [None],
    "sequence_bias": {"(1,)": 2.0}, "exponential_decay_length_penalty": [1], "remove_invalid_values": "yes",
}  # fmt: skip
OUT_OF_RANGE: dict[str, Any] = {
    "repetition_penalty": 0, "encoder_repetition_penalty": -1.0, "no_repeat_ngram_size": -1, "min_new_tokens": -2,
    "bad_words_ids": [[1, VOCABULARY]], "sequence_bias": [[[], 1.0]], "forced_eos_token_id": -1,
    "forced_bos_token_id": VOCABULARY,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [pair for table in (REFUSED, WRONG, OUT_OF_RANGE) for pair in table.items()], ids=str
)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    """With the file and a way to go on without; in silence the tokens would be others."""
    folder = write(tmp_path, {}, {name: value})
    with pytest.raises(CheckpointError) as refused:
        read_generation(folder, VOCABULARY)
    assert name in refused.value.what and refused.value.where == str(folder / FILE)
    assert "--generation-settings ignore" in refused.value.remedy
    if name not in ("eos_token_id", "forced_bos_token_id"):
        assert read_generation(folder, VOCABULARY, "ignore").settings == NEUTRAL


def test_a_forced_token_that_is_suppressed(tmp_path: Path) -> None:
    """Nothing would be left to choose."""
    with pytest.raises(CheckpointError, match="forced_eos_token_id is suppressed"):
        read_generation(write(tmp_path, {}, {"forced_eos_token_id": 4, "suppress_tokens": [4]}), VOCABULARY)
