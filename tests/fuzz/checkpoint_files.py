"""Targets: what a model's folder holds, from headers of weights to the tokenizer's settings."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from expertflow.benchmarks.models import EXAMPLES
from expertflow.runtime.text.chat import has_chat_template, require_chat_template
from expertflow.runtime.text.tokenizer import load_tokenizer, named_tokens
from expertflow.tests.fuzz.examples import examples_of
from expertflow.tests.fuzz.target import Read, Target, in_file
from expertflow.tests.runtime.openai.models import save_model
from expertflow.workers.checkpoint.config_file import read_config
from expertflow.workers.checkpoint.generation import FILE as GENERATION
from expertflow.workers.checkpoint.generation import read_generation
from expertflow.workers.checkpoint.gguf import description
from expertflow.workers.checkpoint.gguf.container import read_container
from expertflow.workers.checkpoint.headers import INDEX, indexed_tensors, read_headers, weight_names
from expertflow.workers.checkpoint.partial_models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, refuse_adapter

MODEL = EXAMPLES / "model"
CONFIGS = (
    (MODEL / "config.json").read_bytes(),
    b'{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}}',
    b'{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": true}}',
    b'{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}',
    b'{"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": '
    b'{"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}}}}',
    b'{"transformers_weights": "other.safetensors", "text_config": {"eos_token_id": [1, 2]}}',
)
GENERATIONS = (
    (MODEL / GENERATION).read_bytes(),
    b'{"eos_token_id": [1, 2], "repetition_penalty": 1.1, "suppress_tokens": [1], "bad_words_ids": [[1, 2], [3]], '
    b'"sequence_bias": [[[1], 0.5]], "exponential_decay_length_penalty": [3, 1.1], "no_repeat_ngram_size": 2, '
    b'"forced_bos_token_id": 3, "forced_eos_token_id": [4], "min_length": 1, "min_new_tokens": 1}',
)
TOKEN = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
SETTINGS = (
    {"added_tokens_decoder": {"257": TOKEN}, "bos_token": "<x>", "extra_special_tokens": ["<y>"]},
    {"eos_token": {"__type": "AddedToken", **TOKEN}, "chat_template": "{{ messages }}"},
    {"additional_special_tokens": ["<a>", "<b>"], "own_token": "<c>", "split_special_tokens": True},
    {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]},
)
SPECIALS = ({"bos_token": "<x>", "pad_token": TOKEN}, {"extra_special_tokens": ["<y>", TOKEN]})


def checkpoint_targets() -> list[Target]:
    """Return a target for each file of a model's folder that our code reads."""
    return [
        Target("safetensors header", in_file("model.safetensors", _read_header), safetensors_seeds),
        Target("GGUF header", in_file("model.gguf", read_container), gguf_seeds),
        Target("chat_template.jinja", in_file("chat_template.jinja", _read_template), lambda: [b"{{ messages }}"]),
        _json("safetensors header (JSON)", _prepare_header, safetensors_tables()),
        _json("index of shards", in_file(INDEX, _read_index), [_dump({"weight_map": {"a": "b"}})]),
        _json("config.json", in_file("config.json", _read_config), CONFIGS),
        _json("generation_config.json", in_file(GENERATION, _read_generation), GENERATIONS),
        _json("adapter_config.json", _prepare_adapter, [b'{"peft_type": "LORA", "base_model_name_or_path": "b"}']),
        _json("GGUF description", in_file(description.FILE, _read_description), _description_seeds()),
        _json("tokenizer_config.json", _in_tokenizer("tokenizer_config.json"), map(_dump, SETTINGS)),
        _json("special_tokens_map.json", _in_tokenizer("special_tokens_map.json"), map(_dump, SPECIALS)),
        _json("added_tokens.json", _in_tokenizer("added_tokens.json"), [b'{"<x>": 257, "<y>": 258}']),
    ]


def _json(name: str, prepare: Callable[[Path], Read], seeds: Iterable[bytes]) -> Target:
    made = list(seeds)
    return Target(name, prepare, lambda: made, form="json")


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _read_header(path: Path) -> object:
    return read_headers([path])


def _prepare_header(folder: Path) -> Read:
    put = in_file("model.safetensors", _read_header)(folder)
    return lambda data: put(_with_length(data))


def _read_index(path: Path) -> object:
    return weight_names(path.parent), indexed_tensors(path.parent)


def _read_config(path: Path) -> object:
    config = read_config(path.parent)
    return weight_names(path.parent, config=config), read_generation(path.parent, 2048, config=config)


def _read_generation(path: Path) -> object:
    return read_generation(path.parent, 2048, config={}), read_generation(path.parent, 2048, "ignore", config={})


def _read_description(path: Path) -> object:
    return description.read_description(path.parent)


def _read_template(path: Path) -> object:
    return has_chat_template(path.parent) and require_chat_template(path.parent)


def _prepare_adapter(folder: Path) -> Read:
    (folder / ADAPTER_WEIGHTS[0]).touch()
    prepared = in_file(ADAPTER_CONFIG, lambda path: refuse_adapter(path.parent))(folder)

    def call(data: bytes) -> None:
        prepared(data)

    return call


def _in_tokenizer(name: str) -> Callable[[Path], Read]:
    """Return a `prepare` for a file beside a valid tokenizer.json."""

    def prepare(folder: Path) -> Read:
        save_model(folder, None)
        if name == "special_tokens_map.json":
            (folder / "tokenizer_config.json").write_bytes(b"{}")
        return in_file(name, _read_tokenizer)(folder)

    return prepare


def _read_tokenizer(path: Path) -> object:
    """Read names and templates, then all tokens: a refusal of the last must not hide an error of the first."""
    folder = path.parent
    return has_chat_template(folder), named_tokens(folder), load_tokenizer(folder)


def safetensors_seeds() -> list[bytes]:
    """Return small files: floats, codes, metadata, nothing."""
    return list(map(_with_length, safetensors_tables()))


def _with_length(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw + bytes(16)


def safetensors_tables() -> list[bytes]:
    """Return the headers of those files."""
    tables = (
        {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}},
        {
            "a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
        },
        {},
    )
    return list(map(_dump, tables))


def gguf_seeds() -> list[bytes]:
    """Return a small file with a value of every type, and one with two tensors."""
    return [_gguf(_entries(), []), _gguf([_entry("general.alignment", 4, struct.pack("<I", 32))], ["a", "b"])]


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(key: str, kind: int, raw: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + raw


def _entries() -> list[bytes]:
    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    scalars = [_entry(f"k{kind}", kind, bytes(width)) for kind, width in widths.items()]
    texts = _entry("texts", 9, struct.pack("<IQ", 8, 2) + _text("one") + _text("two"))
    numbers = _entry("numbers", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3))
    return [*scalars, _entry("general.architecture", 8, _text("qwen3moe")), texts, numbers]


def _gguf(entries: list[bytes], tensors: list[str]) -> bytes:
    table = [
        _text(name) + struct.pack("<IQQIQ", 2, 8, 2, 0, 64 * number) for number, name in enumerate(tensors)
    ]
    opening = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    header = opening + b"".join(entries) + b"".join(table)
    return header + bytes(-len(header) % 32) + bytes(64 * len(tensors))


def _description_seeds() -> list[bytes]:
    return [msgspec.json.encode(each) for each in examples_of(description.Description)]
