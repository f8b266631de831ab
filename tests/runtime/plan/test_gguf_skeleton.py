"""`plan` counts the linear layers of a GGUF model as compute loads them: packed beside packed experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.runtime.plan.fit import budget_fit, model_needs
from expertflow.runtime.plan.proposal import propose
from expertflow.tests.models.gguf_files import describe_here, tiny_model, write_gguf
from expertflow.workers.checkpoint.survey import ModelSizes
from expertflow.workers.compute.skeleton import PackedLinear, load_unbound
from expertflow.workers.kernels.making import TableMaker
from expertflow.workers.kernels.native import missing_reason
from expertflow.workers.kernels.report import DiagnosisRequest
from expertflow.workers.kernels.table import NATIVE
from expertflow.workers.packed.choice import PackingChoice
from expertflow.workers.surveyor.diagnosis import diagnose
from expertflow.workers.surveyor.entry import plan_sizes
from expertflow.workers.surveyor.surveyor import survey_folder

pytestmark = pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())
CHOICES = ("packed", "dequantised")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file whose matrices have one type, the router apart, and the folder that describes it."""
    folder = tmp_path_factory.mktemp("gguf")
    file = folder / "qwen3_moe.gguf"
    write_gguf(file, tiny_model("qwen3_moe"), lambda name: "F32" if "ffn_gate_inp" in name else "Q4_0")
    return file, describe_here(file, folder / "described")


def loaded_bytes(folder: Path, experts_in: str) -> int:
    """Bytes of all tensors of the skeleton that compute loads, packed ones included, tied ones once."""
    make = TableMaker(NATIVE, lambda _: None).make
    survey = survey_folder(folder, make_table=make, choice=PackingChoice(experts_in))  # pyright: ignore[reportArgumentType]
    model = load_unbound(survey)
    packed = [module.matrix.count_bytes for module in model.modules() if isinstance(module, PackedLinear)]
    assert bool(packed) == (experts_in == "packed")
    plain = {id(tensor): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(packed) + sum(plain.values())


def assert_counted(sizes: ModelSizes | None, config: Config, expected: int) -> None:
    assert sizes is not None
    needs, fit = model_needs(sizes), budget_fit(sizes, config, 2**34)
    assert needs.skeleton_bytes == fit.skeleton_bytes == expected


@pytest.mark.parametrize("experts_in", CHOICES)
@torch.inference_mode()
def test_the_skeleton_of_a_plan_is_what_compute_loads(made: tuple[Path, Path], experts_in: str) -> None:
    """By both ways that a plan has: with kernels, and by memory alone. The table is forced: none is timed here."""
    _, folder = made
    config = Config.load(model=folder, kernels=NATIVE, experts_in=experts_in, kv_memory="1MB")
    expected, choice = loaded_bytes(folder, experts_in), PackingChoice(config.experts_in)
    facts: dict[str, Any] = {"revision": "", "dtype": "auto", "generation_settings": "honour", "on_device": False}
    request = DiagnosisRequest(model=str(folder), kernels=NATIVE, choice=choice, measure=False, **facts)
    assert_counted(diagnose(request).sizes, config, expected)
    assert_counted(plan_sizes(str(folder), choice=choice, kernels=NATIVE), config, expected)


def test_where_no_table_is_kept_nothing_is_timed_and_all_counts_as_dequantised(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = plan_sizes(str(made[1]), choice=PackingChoice("packed"), kernels="auto")
    assert found.packable_bytes and found.loaded_skeleton_bytes == found.skeleton_bytes
    assert not list(tmp_path.rglob("kernels*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_agrees_with_a_running_engine(made: tuple[Path, Path]) -> None:
    file, _ = made
    config = Config.load(model=file, kernels=NATIVE, experts_in="packed", expert_memory="50%", kv_memory="1MB")
    planned = [propose(config, 0, memory_only, False, lambda progress: None) for memory_only in (True, False)]
    with Supervisor(config) as engine, Client(engine.address) as client:
        client.generate([[3, 4, 5]], 2, eos_ids=[])
        counted = engine.resources.budgets.skeleton_bytes
    assert {each.model.skeleton_bytes for each in planned} == {counted}
    assert {each.budgets.skeleton_bytes for each in planned} == {counted}
