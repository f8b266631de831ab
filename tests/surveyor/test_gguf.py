"""A GGUF file is described as a checkpoint's folder: configuration, tokenizer, chat template, ends of text, sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.runtime.text.codec import TextCodec
from expertflow.runtime.text.conversation import read_conversation
from expertflow.tests.models.gguf_built_in import BUILT_IN, write_built_in
from expertflow.tests.models.gguf_files import describe_here, finish, tiny_model, write_gguf
from expertflow.workers.checkpoint.gguf.description import FILE, describe, read_description
from expertflow.workers.checkpoint.gguf.model_files import model_files
from expertflow.workers.checkpoint.resolve import local_folder
from expertflow.workers.model.architecture import load_config
from expertflow.workers.surveyor.surveyor import survey_folder

TEXTS = (
    "In the beginning", "def f(x):\n    return x  # ü", "  two  spaces\t\ttabs\r\n", "naïve 東京 🙂",
    "it's 12345 o'clock", "before<|endoftext|>after", "",
)  # fmt: skip


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("gguf")
    return describe_here(write_built_in(base / "built-in.gguf"), base / "described")


def plain(name: str) -> str:
    return "F32"


def written(folder: Path, family: str = "qwen3_moe", extra: Callable[[Any], None] = lambda writer: None) -> Path:
    return write_gguf(folder / "tiny.gguf", tiny_model(family), plain, extra)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_ids_of_the_original_tokenizer(built_in: Path, text: str):
    ours, original = TextCodec(str(built_in)), TextCodec(str(BUILT_IN))
    assert ours.encode(text) == original.encode(text)
    assert ours.decode(ours.encode(text)) == original.decode(original.encode(text))


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path):
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        writer.add_token_merges(["a b"])

    with pytest.raises(CheckpointError, match="has a vocabulary that transformers cannot read"):
        describe_here(written(tmp_path, extra=write), tmp_path / "described")


def test_conversations_are_rendered_alike(built_in: Path):
    rendered = []
    for folder in (built_in, BUILT_IN):
        codec = TextCodec(str(folder))
        rendered.append((codec.encode_chat(read_conversation("Hello")), codec.has_chat_template))
        codec.close()
    assert rendered[0] == rendered[1]


def test_the_survey_is_that_of_the_original_folder(built_in: Path):
    ours, original = survey_folder(built_in), survey_folder(BUILT_IN)
    same = ("model_type", "architecture", "dtype", "context", "vocabulary", "eos_ids", "layers", "experts", "top_k")
    same += ("module_names", "tensors", "skeleton_bytes", "stored_expert_bytes", "settings", "linears")
    assert {name: getattr(ours, name) for name in same} == {name: getattr(original, name) for name in same}
    assert {piece.operation for piece in ours.pieces} == {"copy"}


def test_widths_of_experts_are_read(tmp_path: Path):
    """transformers 5.23 leaves them at the default of one published model."""
    values = config_of(describe_here(written(tmp_path, "qwen2_moe"), tmp_path / "described"))
    assert (values["moe_intermediate_size"], values["shared_expert_intermediate_size"]) == (256, 256)
    assert values["tie_word_embeddings"]


def test_scaled_rotary_positions_are_read_or_refused(tmp_path: Path):
    def scale(kind: str) -> Callable[[Any], None]:
        def write(writer: gguf.GGUFWriter) -> None:
            writer.add_string("qwen3moe.rope.scaling.type", kind)
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(64)

        return write

    values = config_of(describe_here(written(tmp_path, extra=scale("yarn")), tmp_path / "described"))
    stated = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert values["rope_parameters"] == stated | {"rope_theta": 10000.0}
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type = longrope, which is not supported"):
        describe_here(written(tmp_path, extra=scale("longrope")), tmp_path / "other")


def test_gpt_oss_has_the_configuration_of_the_original(tmp_path: Path):
    """Scaled positions not cut off, as it was trained; transformers would fall back to another default."""
    original = tiny_model("gpt_oss").config
    found = load_config(describe_here(written(tmp_path, "gpt_oss"), tmp_path / "described"))
    for name in ("rope_parameters", "sliding_window", "head_dim", "intermediate_size", "num_local_experts"):
        assert getattr(found, name) == getattr(original, name), name


def test_all_ends_of_text_count(tmp_path: Path):
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(2)

    assert survey_folder(describe_here(written(tmp_path, extra=write), tmp_path / "described")).eos_ids == [2, 7]


def test_experts_that_transformers_does_not_place_are_refused(tmp_path: Path):
    """It reads Mixtral, whose architecture is llama here, as a dense model."""
    writer = gguf.GGUFWriter(tmp_path / "mixtral.gguf", "llama")
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 2, "vocab_size": 32, "rope.dimension_count": 32}
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tensor("blk.0.ffn_gate_exps.weight", torch.zeros(4, 64, 64).numpy())
    finish(writer)
    with pytest.raises(CheckpointError, match=r"experts of architecture llama \(blk\.0\.ffn_gate_exps\.weight\)"):
        describe_here(tmp_path / "mixtral.gguf", tmp_path / "described")


def test_an_architecture_of_the_other_way_of_transformers_is_refused_by_name(tmp_path: Path):
    """It has two: the newer one reads Qwen3.5, by conversions of its own."""
    writer = gguf.GGUFWriter(tmp_path / "new.gguf", "qwen35moe")
    numbers = {"context_length": 64, "embedding_length": 64, "block_count": 4, "full_attention_interval": 4}
    numbers |= {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 32}
    numbers |= {"rope.dimension_count": 8, "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 64}
    numbers |= {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 2}
    numbers |= {"ssm.inner_size": 32, "expert_count": 4, "expert_used_count": 2}
    for key, value in numbers.items():
        writer.add_uint32(f"qwen35moe.{key}", value)
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        writer.add_float32(f"qwen35moe.{key}", 1.0)
    writer.add_array("qwen35moe.rope.dimension_sections", [2, 1, 1, 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("output_norm.weight", torch.ones(64).numpy())
    finish(writer)
    with pytest.raises(CheckpointError, match="architecture qwen35moe, whose tensors are not placed here yet"):
        describe_here(tmp_path / "new.gguf", tmp_path / "described")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path):
    file = write_gguf(tmp_path / "less.gguf", tiny_model("qwen3_moe"), plain, without="blk.1.attn_q.weight")
    folder = describe_here(file, tmp_path / "described")
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.self_attn\.q_proj\.weight is missing"):
        survey_folder(folder)


# The folder in the cache


@pytest.mark.timeout(240)
def test_a_file_is_described_once_and_anew_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = written(tmp_path)
    folder = local_folder(str(file))
    assert folder is not None
    made = (folder / FILE).stat().st_mtime_ns
    assert folder.name == "tiny"
    assert local_folder(str(tmp_path)) == folder == describe(file)
    assert (folder / FILE).stat().st_mtime_ns == made
    described = read_description(folder)
    assert described is not None and described.files == [str(file)]
    os.utime(file)
    again = describe(file)
    assert again != folder and (again / FILE).is_file()
    assert not folder.exists()
    assert [entry.name for entry in (tmp_path / "cache" / "expertflow" / "gguf").iterdir()] == [again.parent.name]


@pytest.mark.timeout(240)
def test_an_architecture_that_is_not_mapped_is_refused_by_name_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "grok")
    writer.add_vocab_size(4)
    writer.add_tensor("output_norm.weight", torch.zeros(4).numpy())
    finish(writer)
    with pytest.raises(CheckpointError, match="architecture grok, which transformers does not read") as caught:
        describe(tmp_path / "other.gguf")
    assert "qwen3_moe" in caught.value.remedy
    assert list((tmp_path / "cache" / "expertflow" / "gguf").iterdir()) == []


def test_parts_are_one_model(tmp_path: Path):
    write_gguf(tmp_path / "parts.gguf", tiny_model("qwen3_moe"), plain, tensors_a_part=12)
    files = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(files) == 3
    survey = survey_folder(describe_here(files[1], tmp_path / "described"))
    assert survey.files == [str(part) for part in model_files(files[0])]
    assert {int(number) for number in survey.place_table()[..., 0].flatten()} == {0, 1}  # the last part has none
