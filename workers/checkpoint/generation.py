"""Generation settings of a model folder: where texts end, and what changes logits before a token is chosen.

Read as transformers' `from_pretrained` reads it: generation_config.json if there is one, and then nothing else; else
config.json, where values of the text model stand in for those that the top does not state. Without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...errors import CheckpointError
from ...ipc.messages import NEUTRAL, GenerationSettings
from .config_file import read_config

FILE = "generation_config.json"
_TEXT_CONFIGS = ("decoder", "generator", "text_config")
_REMEDY = "Correct it; or run without these settings: generation_settings = ignore (--generation-settings ignore)"
_Ids = int | list[int] | None
_Struct = TypeVar("_Struct")


class Generation(msgspec.Struct, frozen=True):
    """Ids that end an output, the forced first token of an output, and the settings that change logits."""

    eos_ids: list[int]
    first_token: int | None
    settings: GenerationSettings


class _Ends(msgspec.Struct):
    eos_token_id: _Ids = None
    forced_bos_token_id: int | None = None


class _StatedSettings(msgspec.Struct):
    """Settings that are honoured, as files state them."""

    sequence_bias: list[tuple[list[int], float]] | None = None
    encoder_repetition_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: _Ids = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    renormalize_logits: bool | None = None


def read_generation(
    folder: Path, vocabulary: int, wanted: str = "honour", config: dict[str, Any] | None = None
) -> Generation:
    """Read the ends of text and the generation settings of a model with `vocabulary` tokens.

    `wanted` is "honour" or "ignore" (`Config.generation_settings`). `config`: config.json where it was read already.
    Raises CheckpointError for a file that cannot be read, a value of the wrong type or range, and by name for a setting
    that cannot be honoured.
    """
    stated, file = _read_stated(folder, config)
    ends = _convert(stated, _Ends, file)
    eos_ids = [token for token in _ids(ends.eos_token_id) if token >= 0]  # transformers never meets a negative one
    if wanted == "ignore":
        return Generation(eos_ids, ends.forced_bos_token_id, NEUTRAL)
    _refuse_others(stated, file)
    settings = _settings(_convert(stated, _StatedSettings, file))
    _check(settings, vocabulary, file)
    return Generation(eos_ids, ends.forced_bos_token_id, settings)


def _read_stated(folder: Path, config: dict[str, Any] | None) -> tuple[dict[str, Any], Path]:
    file = folder / FILE
    if file.is_file():
        return _read_object(file), file
    read = read_config(folder) if config is None else config
    values = {key: value for key, value in read.items() if value is not None}
    text = next((values[name] for name in _TEXT_CONFIGS if values.get(name)), None)
    return (text | values if isinstance(text, dict) else values), folder / "config.json"


def _read_object(file: Path) -> dict[str, Any]:
    try:
        stated = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(file), "Download the checkpoint again") from error
    if not isinstance(stated, dict):
        raise CheckpointError("cannot be read (it is not a JSON object)", str(file), "Download the checkpoint again")
    return stated


def _convert(stated: dict[str, Any], cls: type[_Struct], file: Path) -> _Struct:
    try:
        return msgspec.convert(stated, cls)
    except UnicodeEncodeError as error:  # a name or text with half a character, as JSON may write it
        raise CheckpointError(f"cannot be read ({error})", str(file), _REMEDY) from error
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")
        raise CheckpointError(f"{path.strip('`$.')}: {what}", str(file), _REMEDY) from error


def _ids(stated: _Ids) -> list[int]:
    return [] if stated is None else [stated] if isinstance(stated, int) else stated


def _settings(stated: _StatedSettings) -> GenerationSettings:
    values = {name: value for name, value in msgspec.structs.asdict(stated).items() if value is not None}
    values["forced_eos_token_id"] = _ids(stated.forced_eos_token_id)
    return msgspec.convert(values, GenerationSettings)


def _check(settings: GenerationSettings, vocabulary: int, file: Path) -> None:
    """Raise for settings that transformers itself cannot run, or that have no meaning."""
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise _wrong(name, f"is {getattr(settings, name)}, not above 0", file)
    for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"):
        if (getattr(settings, name) or 0) < 0:
            raise _wrong(name, f"is {getattr(settings, name)}, which is negative", file)
    for name, tokens in _named_tokens(settings):
        if other := next((token for token in tokens if not 0 <= token < vocabulary), None):
            raise _wrong(name, f"names token {other}, and the vocabulary has {vocabulary:,}", file)
    if not all([*settings.bad_words_ids, *(words for words, _ in settings.sequence_bias)]):
        raise _wrong("bad_words_ids or sequence_bias", "has an empty sequence", file)
    _check_forced(settings, file)


def _named_tokens(settings: GenerationSettings) -> Iterable[tuple[str, Iterable[int]]]:
    """Yield the tokens that must exist; one that is suppressed need not."""
    bos = settings.forced_bos_token_id
    yield "forced_bos_token_id", () if bos is None else (bos,)
    yield "forced_eos_token_id", settings.forced_eos_token_id
    yield "bad_words_ids", (token for word in settings.bad_words_ids for token in word)
    yield "sequence_bias", (token for words, _ in settings.sequence_bias for token in words)


def _check_forced(settings: GenerationSettings, file: Path) -> None:
    bos = settings.forced_bos_token_id
    forced = {"forced_bos_token_id": () if bos is None else (bos,), "forced_eos_token_id": settings.forced_eos_token_id}
    for name, tokens in forced.items():
        if tokens and set(tokens) <= set(settings.suppress_tokens):
            raise _wrong(name, "is suppressed by suppress_tokens", file)


def _wrong(name: str, what: str, file: Path) -> CheckpointError:
    return CheckpointError(f"{name} {what}", str(file), _REMEDY)


def _is_not_one(value: Any) -> bool:
    return value not in (None, 1)


def _is_set(value: Any) -> bool:
    return value is not None


_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_beams": (_is_not_one, "beam search"),
    "num_return_sequences": (_is_not_one, "several outputs for a prompt"),
    "penalty_alpha": (bool, "contrastive search"),
    "dola_layers": (_is_set, "DoLa decoding"),
    "constraints": (_is_set, "constrained beam search"),
    "force_words_ids": (_is_set, "constrained beam search"),
    "guidance_scale": (lambda value: value not in (None, 1), "classifier-free guidance"),
    "watermarking_config": (_is_set, "a watermark"),
    "token_healing": (bool, "changed prompts"),
    "stop_strings": (bool, "an end of text that depends on letters"),
    "max_time": (_is_set, "an end of text that depends on the clock"),
    "cache_implementation": (lambda value: value == "quantized", "another cache, which changes results"),
}
"""Settings that cannot be honoured: a test whether the value changes the result of `generate`, and its meaning."""


def _refuse_others(stated: dict[str, Any], file: Path) -> None:
    for name, (applies, meaning) in _REFUSED.items():
        if applies(stated.get(name)):
            what = f"{name} = {json.dumps(stated[name])[:60]} asks for {meaning}, which is not supported"
            raise CheckpointError(what, str(file), _REMEDY)
