"""Targets: files of the paper's predictor, tokenizers with the models that they come with, and caches of the user."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from expertflow.runtime.plan.past_runs import FILE as PAST
from expertflow.runtime.plan.past_runs import Past, read_past
from expertflow.runtime.text.codec import TextCodec
from expertflow.runtime.text.tokenizer import named_tokens
from expertflow.tests.fuzz.examples import examples_of
from expertflow.tests.fuzz.target import Read, Target, in_file
from expertflow.tests.fuzz.written_files import MODEL_SHAPE, arrays_in, npz_bytes
from expertflow.tests.runtime.openai.models import save_model
from expertflow.workers.loader.transfer.expert_sums import _Kept, _read
from expertflow.workers.predictor.base.predictor_file import Header
from expertflow.workers.predictor.t5.file import KIND, T5Shape
from expertflow.workers.predictor.t5.forecaster import load_t5
from expertflow.workers.predictor.t5.module import T5Module

SHAPE = T5Shape(
    layers=2, experts=3, top_k=1, vocabulary=5, width=4, inner=4, blocks=1, heads=1, head=2, window=8
)
UNIGRAM: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {"id": 0, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True},
        {"id": 1, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True},
    ],
    "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "truncation": None, "padding": None,
    "model": {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -2.5]]},
}  # fmt: skip
"""As encoder-decoder models (T5, Switch, NLLB) have it, made of their SentencePiece model."""
TEXT = "a b\0 é\U0001f600 </s>"


def learned_targets() -> list[Target]:
    """Return the targets of this module."""
    sums = [[{"0": 1}], [{}]]
    return [
        Target("paper's predictor (npz)", in_file("p.npz", _read_t5), lambda: [npz_bytes(_t5_arrays())]),
        Target("paper's predictor (arrays)", arrays_in("p.npz", _t5_arrays, _read_t5), lambda: [b"", b"\0\0\0"]),
        Target("paper's predictor (header)", _prepare_header, lambda: [_t5_header()], form="json"),
        Target("tokenizer.json", _prepare_tokenizer(""), _tokenizer_seeds, form="json"),
        Target("encoder-decoder tokenizer", _prepare_tokenizer("tokenizer_config.json"), _config_seeds, form="json"),
        Target("past runs", _prepare_past, lambda: list(map(msgspec.json.encode, examples_of(Past))), form="json"),
        Target("checksums of experts", in_file("sums", lambda path: _read(path, 1)), _sums_seeds, form="packed"),
        Target("checksums (inner)", _prepare_sums, lambda: list(map(msgspec.msgpack.encode, sums)), form="packed"),
    ]


def _read_t5(path: Path) -> object:
    with np.errstate(all="ignore"):
        return load_t5(path, MODEL_SHAPE)


def _t5_header() -> bytes:
    return msgspec.json.encode(Header(kind=KIND, model="f", shape=SHAPE))


def header_with(**sizes: int) -> bytes:
    """Return the header of a predictor that states other sizes."""
    return msgspec.json.encode(Header(kind=KIND, model="f", shape=msgspec.structs.replace(SHAPE, **sizes)))


@cache
def _t5_weights() -> dict[str, np.ndarray]:
    state = T5Module(SHAPE).state_dict()
    return {f"weights.{name}": value.detach().numpy().astype(np.float16) for name, value in state.items()}


def _t5_arrays(header: bytes | None = None) -> dict[str, Any]:
    raw = _t5_header() if header is None else header
    return {"header": np.frombuffer(raw, np.uint8), **_t5_weights(), "tokens": np.arange(3)}


def _prepare_header(folder: Path) -> Read:
    put = in_file("p.npz", _read_t5)(folder)
    return lambda data: put(npz_bytes(_t5_arrays(data)))


# Tokenizers


def _tokenizer_seeds() -> list[bytes]:
    return [json.dumps(UNIGRAM).encode(), json.dumps(_byte_tokenizer()).encode()]


def tokenizer_without(*path: str) -> bytes:
    """Return the tokenizer of an encoder-decoder model without a value in it."""
    changed = json.loads(json.dumps(UNIGRAM))
    inside = changed
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    return json.dumps(changed).encode()


@cache
def _byte_tokenizer() -> dict[str, Any]:
    """Return a tokenizer of six letters; that of 256 bytes is too long to be changed."""
    return UNIGRAM | {
        "normalizer": None, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "added_tokens": [],
    }  # fmt: skip


def _config_seeds() -> list[bytes]:
    token = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    listed = {"added_tokens_decoder": {"1": token | {"special": True}}, "extra_ids": 2, "eos_token": "</s>"}
    extra = {"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"], "pad_token": "<pad>", "sp_model_kwargs": {}}
    return [json.dumps(each).encode() for each in (listed, extra)]


def _prepare_tokenizer(name: str) -> Callable[[Path], Read]:
    """Return a `prepare` for tokenizer.json itself, or for another file beside that of an encoder-decoder model."""

    def prepare(folder: Path) -> Read:
        save_model(folder, None)
        (folder / "tokenizer.json").write_text(json.dumps(UNIGRAM))
        return in_file(name or "tokenizer.json", _use_tokenizer)(folder)

    return prepare


def _use_tokenizer(path: Path) -> object:
    """Load a tokenizer and use it as a client does."""
    folder = path.parent
    codec = TextCodec(str(folder))
    ids = codec.encode(TEXT)
    return codec.has_chat_template, named_tokens(folder), codec.decode(ids), codec.token_name(0)


# Caches of the user


def _prepare_past(folder: Path) -> Read:
    return in_file(PAST, lambda path: read_past(lambda: path.parent))(folder)


def _sums_seeds() -> list[bytes]:
    sums = msgspec.msgpack.encode([{}])
    return [msgspec.msgpack.encode(_Kept(hashlib.sha256(sums).digest(), sums))]


def _prepare_sums(folder: Path) -> Read:
    """Return a reader of checksums whose digest is right."""
    put = in_file("sums", lambda path: _read(path, 1))(folder)
    return lambda data: put(msgspec.msgpack.encode(_Kept(hashlib.sha256(data).digest(), data)))


def npz_without_an_array(name: str) -> bytes:
    """Return an npz file of a trace of which one member is no array."""
    zeros = np.zeros((4, 2, 2), np.int64)
    arrays = {"experts": zeros, "prompt_offsets": np.array([0, 4]), "token_ids": zeros[:, 0, 0]}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for own, array in arrays.items():
            written = io.BytesIO()
            np.save(written, array)
            packed.writestr(f"{own}.npy", b"no array" if own == name else written.getvalue())
    return file.getvalue()
