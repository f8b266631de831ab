"""Tokens that other files of a model folder add to tokenizer.json: ids and texts are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.text.codec import TextCodec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

TEXT = "<s><|im_start|>user hello  <|tool|> x<mask><|im_end|>\n<extra>bye</s><|cased|> <Cased>"
PLAIN: dict[str, Any] = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
SPECIAL = PLAIN | {"special": True}
TYPED = SPECIAL | {"__type": "AddedToken"}
DECODER = {
    "tokenizer_config.json": {
        "added_tokens_decoder": {
            "258": SPECIAL | {"content": "<|im_end|>"},
            "257": SPECIAL | {"content": "<|im_start|>", "lstrip": True},
            "400": PLAIN | {"content": "<|tool|>", "special": False},
        },
        "bos_token": "<s>",
        "additional_special_tokens": ["<|im_end|>", "<extra>"],
    },
    "special_tokens_map.json": {"eos_token": "</s>"},
    "added_tokens.json": {"<|cased|>": 300},
}
ADDITIONAL = {"tokenizer_config.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}
EXTRA = {
    "tokenizer_config.json": {
        "extra_special_tokens": {"tool_token": "<|tool|>"}, "image_token": "<extra>",
        "mask_token": TYPED | {"content": "<mask>", "lstrip": True}, "eos_token": {**TYPED, "content": "</s>"},
    },
}  # fmt: skip
ADDED = {
    "added_tokens.json": {"<|im_end|>": 258, "<|im_start|>": 257, "<Cased>": 256},
    "tokenizer_config.json": {"eos_token": "<|im_end|>"},
}
MAP = {
    "special_tokens_map.json": {
        "bos_token": {"content": "<s>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False},
        "eos_token": "</s>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "extra_special_tokens": ["<extra>", PLAIN | {"content": "<|tool|>"}],
    },
    "tokenizer_config.json": {"eos_token": "<|im_end|>", "split_special_tokens": False},
}
SPLIT = {"tokenizer_config.json": DECODER["tokenizer_config.json"] | {"split_special_tokens": True}}
FILES = {"decoder": DECODER, "additional": ADDITIONAL, "extra": EXTRA, "added": ADDED, "map": MAP, "split": SPLIT}


def save_tokenizer(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write a tokenizer of single bytes that knows one special token itself, and these files beside it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content in ({"tokenizer_config.json": {}} | files).items():
        (folder / name).write_text(json.dumps(content | (kind if name == "tokenizer_config.json" else {})))


@pytest.mark.parametrize("files", FILES)
def test_ids_and_texts_are_those_of_transformers(files: str, tmp_path: Path) -> None:
    """Written out as letters, a special token is another prompt, and nothing says so."""
    save_tokenizer(tmp_path, FILES[files])
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), TextCodec(str(tmp_path))
    ids = theirs(TEXT)["input_ids"]
    assert ours.encode(TEXT) == ids
    every = list(range(len(theirs)))
    for these in (ids, every):
        assert ours.decode(these) == theirs.decode(these, skip_special_tokens=True)


def test_each_file_matters(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    lengths: dict[str, int] = {}
    for name, files in ({"none": {}} | FILES).items():
        (tmp_path / name).mkdir()
        save_tokenizer(tmp_path / name, files)
        lengths[name] = len(TextCodec(str(tmp_path / name)).encode(TEXT))
    assert all(lengths[name] < lengths["none"] for name in FILES)
    assert lengths["split"] > lengths["decoder"]  # special tokens are letters there, others are not


BROKEN = [
    "{", "[]", '{"added_tokens_decoder": {"x": 1}}', '{"extra_special_tokens": 7}', '{"bos_token": {"content": 1}}',
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_files_that_cannot_be_read_are_a_typed_error(text: str, tmp_path: Path) -> None:
    """Not a traceback of a library."""
    save_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(UsageError) as refused:
        TextCodec(str(tmp_path)).encode(TEXT)
    assert "tokenizer_config.json" in str(refused.value) and refused.value.remedy
