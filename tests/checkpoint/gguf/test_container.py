"""Headers of GGUF files: read as the `gguf` package wrote them, and refused, by name, when they are damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from expertflow.errors import CheckpointError
from expertflow.tests.models.gguf_files import finish
from expertflow.workers.checkpoint.gguf.container import Omitted, read_container
from expertflow.workers.checkpoint.gguf.model_files import model_files, model_name, only_model, read_containers
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


def write(file: Path, **shard: int) -> Path:
    """Write a file with a value of each kind and tensors of three types."""
    writer = gguf.GGUFWriter(file, "qwen3moe")
    writer.add_block_count(3)
    writer.add_float32("some.float", 0.5)
    writer.add_bool("some.flag", True)
    writer.add_int64("some.negative", -7)
    writer.add_array("some.numbers", [3, 1, 2])
    writer.add_token_list(["a", "ü", "long token"])
    for key, value in shard.items():
        writer.add_uint16(f"split.{key}", value)
    blocks = np.arange(2 * 3 * 34, dtype=np.uint8).reshape(2, 3, 34)
    writer.add_tensor("experts", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor(f"plain.{shard.get('no', 0)}", np.arange(5, dtype=np.float32))
    writer.add_tensor("half", np.ones((2, 4), dtype=np.float16))
    finish(writer)
    return file


def test_a_header_is_what_the_package_wrote_and_reads(tmp_path: Path):
    file = write(tmp_path / "x.gguf")
    ours, theirs = read_container(file), gguf.GGUFReader(file)
    assert ours.architecture == "qwen3moe"
    expected = {"some.float": 0.5, "some.flag": True, "some.negative": -7, "some.numbers": [3, 1, 2]}
    assert expected.items() <= ours.metadata.items()
    assert ours.metadata["tokenizer.ggml.tokens"] == Omitted(3)
    for own, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (own.name, own.type.name) == (other.name, other.tensor_type.name)
        assert own.shape == list(reversed(other.shape.tolist()))
        assert (own.offset_bytes, own.count_bytes) == (other.data_offset, other.n_bytes)
    assert ours.tensors[0].shape == [2, 3, 32]


def test_the_bytes_of_a_tensor_are_where_the_header_says(tmp_path: Path):
    file = write(tmp_path / "x.gguf")
    experts = read_container(file).tensors[0]
    stored = file.read_bytes()[experts.offset_bytes : experts.offset_bytes + experts.count_bytes]
    assert stored == bytes(range(2 * 3 * 34))


@pytest.mark.parametrize("cut", [0, 3, 10, 23, 40, 200, 400])
def test_a_header_that_is_cut_off_is_refused(whole: bytes, tmp_path: Path, cut: int):
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match="cut off in its header|does not begin with GGUF"):
        read_container(file)


def test_weights_that_are_cut_off_are_refused_by_the_name_of_the_tensor(whole: bytes, tmp_path: Path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[:-32])
    with pytest.raises(CheckpointError, match="tensor half ends at byte"):
        read_container(file)


def test_blocks_that_are_cut_off_are_refused_by_the_name_of_the_tensor(whole: bytes, tmp_path: Path):
    place = read_container(_saved(whole, tmp_path)).tensors[0]
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: place.offset_bytes + place.count_bytes - 1])
    with pytest.raises(CheckpointError, match="tensor experts ends at byte"):
        read_container(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0", "version 1, which"),
        (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "version 3, big-endian"),
        (b"experts" + struct.pack("<I", 3), b"experts" + struct.pack("<I", 900), "900 dimensions for tensor experts"),
        (struct.pack("<3QI", 32, 3, 2, 8), struct.pack("<3QI", 32, 3, 2, 10), "tensor experts is stored as Q2_K"),
        (
            struct.pack("<3QI", 32, 3, 2, 8),
            struct.pack("<3QI", 32, 3, 2, 99),
            "experts is stored as the unknown type 99",
        ),
        (
            struct.pack("<3QI", 32, 3, 2, 8),
            struct.pack("<3QI", 31, 3, 2, 8),
            "rows of 31 values, no whole number of blo",
        ),
        (struct.pack("<3QI", 32, 3, 2, 8), struct.pack("<3QI", 2**60, 2**60, 2, 8), "cut off: tensor experts ends"),
        (struct.pack("<3QI", 32, 3, 2, 8) + bytes(8), struct.pack("<3QIQ", 32, 3, 2, 8, 8), "not at a multiple of 32"),
        (b"some.flag", b"some.fl\xff\xfe", "garbled header"),
        (b"some.flag" + struct.pack("<I", 7), b"some.flag" + struct.pack("<I", 77), "unknown type 77 at some.flag"),
        (struct.pack("<Q", 4) + b"half", struct.pack("<Q", 2**50) + b"half", "cut off in its header"),
    ],
)
def test_damage_is_refused(whole: bytes, tmp_path: Path, old: bytes, new: bytes, said: str):
    assert whole.count(old) == 1
    with pytest.raises(CheckpointError, match=said):
        read_container(_saved(whole.replace(old, new), tmp_path))


@pytest.mark.parametrize("place", [8, 16])
def test_numbers_that_cannot_be_are_refused_at_once(whole: bytes, tmp_path: Path, place: int):
    """Of tensors, and of metadata entries."""
    with pytest.raises(CheckpointError, match="which cannot be"):
        read_container(_saved(whole[:place] + b"\xff" * 7 + whole[place + 7 :], tmp_path))


@settings(max_examples=200)
@given(place=st.integers(0, 700), value=st.integers(0, 255))
def test_any_changed_byte_gives_a_header_or_a_typed_error(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, place: int, value: int
):
    changed = bytearray(whole)
    changed[place % len(whole)] = value
    file = tmp_path_factory.getbasetemp() / "changed.gguf"
    file.write_bytes(changed)
    try:
        found = read_container(file)
    except CheckpointError as error:
        assert str(file) in str(error) and error.remedy
    else:
        assert all(own.offset_bytes + own.count_bytes <= len(whole) for own in found.tensors)


def test_a_tensor_named_twice_is_refused(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "twice.gguf", "qwen3moe")
    for name in ("one", "two"):
        writer.add_tensor(name, np.zeros(4, dtype=np.float32))
    finish(writer)
    raw = (tmp_path / "twice.gguf").read_bytes().replace(b"\3\0\0\0\0\0\0\0two", b"\3\0\0\0\0\0\0\0one")
    with pytest.raises(CheckpointError, match="names a tensor twice"):
        read_container(_saved(raw, tmp_path))


# Parts


def test_all_parts_are_found_by_any_of_them(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / f"big-{number:05}-of-00002.gguf").touch()
    parts = model_files(tmp_path / "big-00002-of-00002.gguf")
    assert [part.name for part in parts] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    assert {model_name(part) for part in parts} == {"big"}
    assert only_model(tmp_path) == parts[0]


def test_a_missing_part_is_named(tmp_path: Path):
    (tmp_path / "big-00001-of-00003.gguf").touch()
    with pytest.raises(CheckpointError, match=r"is one of 3 parts, and big-00002-of-00003\.gguf is missing"):
        model_files(tmp_path / "big-00001-of-00003.gguf")


def test_a_folder_with_several_models_is_refused_and_a_vision_part_does_not_count(tmp_path: Path):
    (tmp_path / "one.gguf").touch()
    (tmp_path / "mmproj-one.gguf").touch()
    assert only_model(tmp_path) == tmp_path / "one.gguf"
    (tmp_path / "two.gguf").touch()
    with pytest.raises(CheckpointError, match=r"several GGUF models \(one, two\)"):
        only_model(tmp_path)


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        ([{"no": 0, "count": 2}], "is part 1 of 2 under a name of its own"),
        ([{"no": 0, "count": 2}, {"no": 0, "count": 2}], "states that it is part 1 of 2, unlike its name"),
        ([{"no": 0, "count": 2}, {"no": 1, "count": 2}], "hold the same tensor twice"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, shards: list[dict[str, int]], said: str):
    files = [write(tmp_path / f"part{number}.gguf", **shard) for number, shard in enumerate(shards)]
    with pytest.raises(CheckpointError, match=said):
        read_containers(files)


def _saved(raw: bytes, folder: Path) -> Path:
    file = folder / "damaged.gguf"
    file.write_bytes(raw)
    return file


def test_nested_lists_and_lists_longer_than_the_file_are_refused(tmp_path: Path):
    """The format allows lists of lists; a reader that follows them runs out of stack."""

    def entry(kind: int, count: int) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
        return head + struct.pack("<IQ", kind, count)

    lists = ((9, 1, "unknown type 9"), (4, 2**62, "cut off"), (8, 2**62, "cut off"), (10, 2**64 - 1, "cut off"))
    for kind, count, said in lists:
        file = tmp_path / "hostile.gguf"
        file.write_bytes(entry(kind, count) + struct.pack("<IQ", 9, 1) * 1000)
        with pytest.raises(CheckpointError, match=said):
            read_container(file)
