"""Text and ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.client import Client
from expertflow.runtime.text.codec import TextCodec, TextStream
from expertflow.tests.scheduler.fake_engine import FakeEngine
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

TEXT = "Ein Affe 🐒 sagt: naïve façade, 日本語!"


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, so that characters come in pieces, and a BOS token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=300)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with that tokenizer."""
    save_byte_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A model folder whose tokenizer puts a space before each word but the first, as sentencepiece does."""
    vocabulary = {"▁one": 0, "▁two": 1, "▁three": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_what_is_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="UTF-8") as refused:
        TextCodec(str(folder)).encode("caf\udce9")
    assert refused.value.remedy


def test_settings_of_training_do_not_shorten_or_pad_a_prompt(folder: Path) -> None:
    """A silently truncated prompt would be a wrong answer."""
    ids = TextCodec(str(folder)).encode(TEXT)
    assert ids[0] == 256 and len(ids) == 1 + len(TEXT.encode())


def test_round_trip_without_special_tokens(folder: Path) -> None:
    """The BOS token is not part of the text."""
    codec = TextCodec(str(folder))
    assert codec.decode(codec.encode(TEXT)) == TEXT


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_deltas_never_split_a_character(folder: Path, step: int) -> None:
    """A terminal would show replacement characters, and the deltas would not add up."""
    codec = TextCodec(str(folder))
    ids = codec.encode(TEXT)
    stream = TextStream(codec)
    ends = [*range(step, len(ids), step), len(ids)]
    deltas = [stream.delta(ids[:end], done=end == len(ids)) for end in ends]
    assert "".join(deltas) == TEXT
    assert not any("\ufffd" in delta for delta in deltas)


def test_an_output_that_ends_inside_a_character(folder: Path) -> None:
    """What cannot be completed any more is shown as it is, once."""
    codec = TextCodec(str(folder))
    ids = codec.encode("a🐒")[:-1]
    stream = TextStream(codec)
    deltas = [stream.delta(ids[:end], done=False) for end in range(1, len(ids) + 1)]
    assert "".join(deltas) == "a"
    assert "a" + stream.delta(ids, done=True) == codec.decode(ids)


def test_spaces_between_words_are_kept(words: Path) -> None:
    """A word decoded alone loses its leading space."""
    stream = TextStream(TextCodec(str(words)))
    ids = [0, 1, 2, 1]
    assert [stream.delta(ids[:end], done=end == 4) for end in range(1, 5)] == ["one", " two", " three", " two"]


def test_a_folder_without_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    """The error must say what to do instead."""
    codec = TextCodec(str(tmp_path))
    with pytest.raises(UsageError, match="list of token ids"):
        codec.encode("hello")
    assert codec.decode([1, 2]) == ""


def test_a_broken_tokenizer_is_a_typed_error(tmp_path: Path) -> None:
    """Not the library's bare Exception."""
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read the tokenizer"):
        TextCodec(str(tmp_path)).encode("hello")


def test_texts_through_an_engine(folder: Path) -> None:
    """Text in, text out, and the stream adds up to it."""
    with FakeEngine(folder, vocabulary=257) as engine, Client(engine.address) as client:
        batch = client.submit(["Hi", [1, 2]], max_new_tokens=30, eos_ids=[])
        streamed = ["", ""]
        for event in batch:
            streamed[event.index] += event.text_delta
        done = batch.results()
        assert done[0].prompt_ids == TextCodec(str(folder)).encode("Hi")
        assert [completion.text for completion in done] == streamed
        assert len(done[0].token_ids) == 30


def test_the_client_imports_nothing_large() -> None:
    """Torch costs seconds and hundreds of megabytes; tokenizers come with the first text; asyncio is not for all."""
    heavy = {"torch", "transformers", "tokenizers", "asyncio"}
    code = f"import sys, expertflow; expertflow.Client; print(*{heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
