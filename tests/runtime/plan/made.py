"""A model and a kernel table of no real machine, for forecasts."""

from __future__ import annotations

from expertflow.runtime.plan.speed import ModelOnMachine
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import LinearCount, SlotTensor, Survey
from expertflow.workers.kernels.table import ROW_STEPS, KernelTable, LinearShape
from msgspec import structs

MB = 10**6
EXPERT = "expert bfloat16 1000x500 SiLUActivation gated"
LINEAR = LinearShape(1000, 1000, "bfloat16")


def made_sizes(layers: int = 16, experts: int = 64, top_k: int = 8) -> Survey:
    """A model whose experts take 3 MB each."""
    survey = fake_survey(layers, experts, stride_bytes=3 * MB)
    tensor = SlotTensor("w", [1000, 1500], "bfloat16", 3 * MB, 0)
    return structs.replace(survey, top_k=top_k, tensors=[tensor], linears=[LinearCount(LINEAR, 4 * layers)])


def made_table(expert_us: float = 400.0) -> KernelTable:
    times = {EXPERT: expert_us, LINEAR.key: 200.0}
    return KernelTable(
        machine={"cpu": "made"},
        choices={key: ["native"] * len(ROW_STEPS) for key in times},
        times_us={key: [{"native": us * (1 + rows / 100)} for rows in ROW_STEPS] for key, us in times.items()},
    )


def made_model(fingerprint: str = "a") -> ModelOnMachine:
    return ModelOnMachine(sizes=made_sizes(), fingerprint=fingerprint, files=[], kernels=made_table())
