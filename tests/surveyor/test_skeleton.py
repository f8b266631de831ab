"""The skeleton is what `from_pretrained` gives, bit for bit, in every family: all but the routed experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_config
from expertflow.tests.models.families import FAMILIES, save_tiny
from expertflow.tests.surveyor.skeletons import assert_skeleton_equal, load_both, shared_storage, tensors

DTYPES = ("auto", "float32", "bfloat16", "float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_skeleton_equals_from_pretrained(folders: Path, family: str, dtype: str):
    assert_skeleton_equal(*load_both(folders / family, dtype))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "dbrx"])  # it refuses to tie them
def test_tied_embeddings_are_one_tensor(tmp_path: Path, family: str):
    """Two copies would cost memory, and a checkpoint that stores one of them would leave the other random."""
    save_tiny(family, tmp_path, tie_word_embeddings=True)
    survey, ours, theirs = load_both(tmp_path, "bfloat16")
    assert shared_storage(ours, set())
    assert_skeleton_equal(survey, ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_bfloat16_checkpoint_gives_the_same_skeleton(tmp_path: Path, family: str):
    """`auto` follows the configuration; the score corrections stay in float32 where the library keeps them there."""
    save_tiny(family, tmp_path, dtype=torch.bfloat16, max_shard_size="20KB")
    survey, ours, theirs = load_both(tmp_path, "auto")
    assert survey.dtype == "bfloat16"
    assert len(survey.files) > 2
    assert_skeleton_equal(survey, ours, theirs)


@pytest.mark.parametrize(("family", "dtype", "kept"), [("deepseek_v3", "bfloat16", 2), ("gpt_oss", "float16", 9)])
def test_what_the_library_keeps_in_float32_stays_there(folders: Path, family: str, dtype: str, kept: int):
    """Else the comparison above could hold only because nothing is kept."""
    _, ours, _ = load_both(folders / family, dtype)
    saved = ours.state_dict()
    assert sum(tensor.dtype == torch.float32 for tensor in saved.values()) == kept


def test_auto_follows_the_weights_when_the_configuration_says_nothing(tmp_path: Path):
    save_tiny("olmoe", tmp_path, dtype=torch.bfloat16)
    edit_config(tmp_path, dtype=None)
    survey, ours, theirs = load_both(tmp_path, "auto")
    assert survey.dtype == "bfloat16"
    assert_skeleton_equal(survey, ours, theirs)


def test_a_skeleton_does_not_depend_on_the_random_state(folders: Path):
    """A tensor that was not loaded would be drawn."""
    torch.manual_seed(1)
    _, ours, _ = load_both(folders / "qwen3_next", "float32")
    torch.manual_seed(2)
    _, reissue_copies, _ = load_both(folders / "qwen3_next", "float32")
    assert all(torch.equal(tensor, tensors(reissue_copies)[name]) for name, tensor in tensors(ours).items())
