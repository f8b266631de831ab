"""GGUF files through the pipeline: logits and tokens of the model that transformers makes of the same file (I1b)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.errors import CheckpointError
from expertflow.runtime.text.codec import TextCodec
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.runtime.verify.reference import load_reference
from expertflow.tests.models.gguf_built_in import BUILT_IN, write_built_in
from expertflow.tests.models.gguf_files import describe_here, library_gguf, mixed_types, tiny_model, write_gguf
from expertflow.tests.surveyor.skeletons import NO_FEED, assert_skeleton_equal
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.schedules import Driver
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import sample
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import PackedLinear, load_model, load_unbound
from expertflow.workers.kernels.native import NativeKernels, missing_reason
from expertflow.workers.kernels.table import NATIVE, KernelTable
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.packed.choice import PackingChoice
from expertflow.workers.surveyor.surveyor import survey_folder

VOCABULARY = 128
TEXT = "In the beginning"
TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
SLOW = {"F16", "Q4_1", "Q5_1", "Q8_0", "IQ4_XS"}
"""Their blocks differ little from those of another one, and test_dequantise.py has them all."""
CASES = [
    ("qwen2_moe", "Q8_0"),
    ("minimax_m2", "Q5_K"),
    *(pytest.param("qwen3_moe", each, marks=[pytest.mark.slow] if each in SLOW else []) for each in TYPES),
]


def made(family: str, type_name: str, folder: Path) -> tuple[Path, Path]:
    """Return a file whose matrices have one type, the router apart, and the folder that describes it."""
    file = folder / f"{family}.gguf"
    write_gguf(file, tiny_model(family), lambda name: "F32" if "ffn_gate_inp" in name else type_name)
    return file, describe_here(file, folder / "described")


def decoded(survey: Survey, slots: int, tier: str = "disk") -> tuple[list[int], list[int], torch.Tensor]:
    """Return a prompt, the tokens decoded after it, and their logits [tokens, vocabulary]."""
    seen: list[torch.Tensor] = []

    def choose(step, unit, logits):  # noqa: ANN001, ANN202 - the signature of Chooser
        seen.append(logits[0].clone())
        return sample(step, unit, logits)

    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), choose, None, tier=tier) as runtime:
        driver = Driver(runtime, VOCABULARY)
        driver.prefill(1, random_prompts(1, VOCABULARY, seed=3))
        for _ in range(6):
            driver.decode(1)
    sequence = driver.sequences[0]
    return sequence.prompt_ids, sequence.token_ids, torch.stack(seen)


@pytest.mark.parametrize(("family", "type_name"), CASES)
def test_logits_are_those_of_transformers(family: str, type_name: str, tmp_path: Path):
    """Teacher-forced in float32, at a quarter of the experts; the skeleton is equal bit for bit."""
    file, folder = made(family, type_name, tmp_path)
    survey = survey_folder(folder, "float32")
    reference = library_gguf(file, folder, torch.float32)
    assert_skeleton_equal(survey, load_model(survey, NO_FEED, RoutingCollector()), reference)
    prompt, tokens, logits = decoded(survey, survey.expert_count // 4)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_gpt_oss_in_blocks_of_mxfp4_is_the_model_of_the_same_values(tmp_path: Path):
    """As published: experts in MXFP4. transformers cannot read the file, so verify's reference is compared."""
    file = write_gguf(tmp_path / "oss.gguf", tiny_model("gpt_oss"), lambda name: "MXFP4" if "exps" in name else "BF16")
    folder = describe_here(file, tmp_path / "described")
    survey = survey_folder(folder, "float32")
    prompt, tokens, logits = decoded(survey, 3)
    with torch.inference_mode():
        expected = load_reference(folder, torch.float32)(torch.tensor([prompt + tokens])).logits[
            0, len(prompt) - 1 : -1
        ]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_layers_of_different_types_run_at_every_budget_alike(tmp_path: Path):
    """As in Q4_K_M: the same bits with one slot, a few, and all, from disk and from the host store (I1a)."""
    file = write_gguf(tmp_path / "mixed.gguf", tiny_model("qwen3_moe"), mixed_types)
    folder = describe_here(file, tmp_path / "described")
    survey = survey_folder(folder)
    assert survey.dtype == "bfloat16"
    assert survey.variants == [0, 1]
    *first, logits = decoded(survey, 1)
    for slots, tier in ((3, "disk"), (survey.expert_count, "disk"), (4, "host")):
        *other, others = decoded(survey, slots, tier)
        assert other == first
        assert torch.equal(others, logits)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "gpt_oss"])
def test_the_tokens_are_those_of_the_weights_before_packing(family: str, tmp_path: Path):
    """Stored in float32 nothing is lost: names and shapes alone could be wrong. transformers cannot read gpt-oss,
    nor the gate of a shared expert as the converter writes it now.
    """
    original = tiny_model(family, seed=5)
    file = write_gguf(tmp_path / "plain.gguf", original, lambda name: "F32", squeeze=False)
    folder = describe_here(file, tmp_path / "described")
    survey = survey_folder(folder)
    assert survey.dtype == "float32"
    prompt, tokens, logits = decoded(survey, 2)
    with torch.inference_mode():
        expected = original(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.timeout(240)
def test_a_file_with_its_own_tokenizer_runs_in_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In real processes, in float32, at a quarter of the experts; the text is that of the original folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_built_in(tmp_path / "built-in.gguf")
    config = Config.load("cpu-disk", model=str(file), dtype="float32", expert_memory="25%")
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate([TEXT], max_new_tokens=16)[0]
        assert client.has_chat_template
    original = TextCodec(str(BUILT_IN))
    expected = Reference(BUILT_IN).greedy(original.encode(TEXT), 16)
    assert done.token_ids == expected
    assert done.text == original.decode(expected)


PACKED = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
PACKED_SLOW = {"Q5_0", "Q8_0", "Q5_K", "IQ4_NL"}
"""The kernels' own tests have every type."""


@pytest.mark.parametrize(
    "type_name", [pytest.param(each, marks=[pytest.mark.slow] if each in PACKED_SLOW else []) for each in PACKED]
)
def test_packed_experts_give_the_bits_of_dequantised_ones(type_name: str, tmp_path: Path):
    """Slots hold the stored blocks: less memory, the same logits bit for bit, at two budgets."""
    _, folder = made("qwen3_moe", type_name, tmp_path)
    assert_packed_alike(folder, {type_name})


def test_packed_layers_of_different_types(tmp_path: Path):
    """As in Q4_K_M: slots are as large as the largest, and each layer's have tensors of their own."""
    file = write_gguf(tmp_path / "mixed.gguf", tiny_model("qwen3_moe"), mixed_types)
    survey = assert_packed_alike(describe_here(file, tmp_path / "described"), {"Q4_K", "Q6_K"})
    assert len(survey.variants) == 2


def test_packed_experts_of_gpt_oss_have_alternating_rows(tmp_path: Path):
    file = write_gguf(tmp_path / "oss.gguf", tiny_model("gpt_oss"), lambda name: "MXFP4" if "exps" in name else "BF16")
    survey = assert_packed_alike(describe_here(file, tmp_path / "described"), {"MXFP4"})
    assert {packing.transposed for packing in survey.packings} == {True}


@pytest.mark.parametrize("type_name", ["Q4_1", "BF16"])
def test_types_that_cannot_stay_packed_are_refused_by_name(type_name: str, tmp_path: Path):
    _, folder = made("qwen3_moe", type_name, tmp_path)
    with pytest.raises(CheckpointError, match="cannot stay packed: (gate_up_proj is stored as Q4_1|they are not)"):
        survey_folder(folder, choice=PackingChoice("packed"))


def assert_packed_alike(folder: Path, types: set[str]) -> Survey:
    """Compare packed with dequantised experts, and return the survey of the packed ones."""
    packed = survey_folder(folder, choice=PackingChoice("packed"))
    dequantised = survey_folder(folder, choice=PackingChoice("dequantised"))
    assert {packing.format for packing in packed.packings} == types
    assert packed.expert_bytes < 0.6 * dequantised.expert_bytes
    *expected, logits = decoded(dequantised, 3)
    for slots, tier in ((2, "disk"), (packed.expert_count, "host")):
        *other, others = decoded(packed, slots, tier)
        assert other == expected
        assert torch.equal(others, logits)
    return packed


def with_native_kernels(survey: Survey) -> Survey:
    """Return a survey as an engine has it whose table names the native kernels."""
    native = NativeKernels.open_for_packed()
    if native is None:
        pytest.skip(missing_reason())
    return msgspec.structs.replace(survey, kernels=KernelTable(isa=native.isa, choices={"any": [NATIVE] * 10}))


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_linear_layers_stay_packed_beside_packed_experts(family: str, tmp_path: Path):
    """Their values are those of the dequantised ones bit for bit, their products as near as a sum's order allows."""
    _, folder = made(family, "Q4_0", tmp_path)
    plain = survey_folder(folder, choice=PackingChoice("packed"))
    packed = with_native_kernels(plain)
    ours, theirs = load_unbound(packed), load_unbound(plain)
    names = [name.rpartition(".")[0] for name in packed.packed_linears]
    assert "model.layers.1.self_attn.o_proj" in names and not plain.packed_linears
    assert packed.loaded_skeleton_bytes < 0.4 * plain.loaded_skeleton_bytes == 0.4 * parameter_bytes(theirs)
    for name in names:
        own, other = ours.get_submodule(name), theirs.get_submodule(name)
        assert type(own) is PackedLinear and torch.equal(own.weight, other.weight)  # pyright: ignore[reportArgumentType]
        for rows in (1, 3, 9):
            given = torch.randn(2, rows, own.in_features).bfloat16()
            with torch.inference_mode():
                torch.testing.assert_close(own(given), other(given), rtol=2**-6, atol=2**-5)
    others = {name: tensor for name, tensor in theirs.state_dict().items() if name not in packed.packed_linears}
    assert ours.state_dict().keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in ours.state_dict().items())


def test_with_packed_linear_layers_a_budget_changes_no_bit(tmp_path: Path):
    _, folder = made("qwen3_moe", "Q4_0", tmp_path)
    survey = with_native_kernels(survey_folder(folder, choice=PackingChoice("packed")))
    *expected, logits = decoded(survey, survey.expert_count, "host")
    *other, others = decoded(survey, 2)
    assert survey.packed_linears and other == expected and torch.equal(others, logits)


def parameter_bytes(model: torch.nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def test_with_dequantised_experts_or_other_kernels_no_linear_layer_is_packed(tmp_path: Path):
    _, folder = made("qwen3_moe", "Q4_0", tmp_path)
    assert not with_native_kernels(survey_folder(folder, choice=PackingChoice("dequantised"))).packed_linears
    assert not survey_folder(folder, choice=PackingChoice("packed")).packed_linears


def test_rows_of_another_type_are_refused_by_a_packed_linear_layer(tmp_path: Path):
    _, folder = made("qwen3_moe", "Q8_0", tmp_path)
    model = load_unbound(with_native_kernels(survey_folder(folder, choice=PackingChoice("packed"))))
    with pytest.raises(TypeError, match=r"rows are torch.float32, a packed linear layer takes torch.bfloat16"):
        model.get_submodule("lm_head")(torch.zeros(1, 256))
