"""A training run counts processor seconds, learns, and goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.errors import UsageError
from expertflow.examples.studies.vlm.architectures import ARCHITECTURES
from expertflow.examples.studies.vlm.folders import trained_folder
from expertflow.examples.studies.vlm.routers import RouterRecorder, balance_loss, router_modules
from expertflow.examples.studies.vlm.training import Trainer, TrainingPlan, new_model
from expertflow.examples.studies.vlm.vocabulary import build_tokenizer


def trainer(budget_s: float) -> Trainer:
    plan = TrainingPlan("qwen3_vl_moe", budget_s=budget_s, rows=4)
    return Trainer(plan, new_model(plan.architecture, len(build_tokenizer()), plan.seed))


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    lines: list[str] = []
    first = trainer(1.0)
    before = first.model.lm_head.weight.clone()
    first.run(tmp_path / "run.pt", lines.append)
    assert first.progress.used_s >= 1.0 and first.progress.loss < 5.0
    assert not torch.equal(before, first.model.lm_head.weight)
    second = trainer(1.0)
    second.run(tmp_path / "run.pt", lines.append)
    assert second.progress == first.progress and lines == [f"goes on at step {first.progress.steps}"]
    assert torch.equal(second.model.lm_head.weight, first.model.lm_head.weight)
    assert torch.equal(second.source.draw().ids, first.source.draw().ids)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_router_is_recorded_and_balanced(architecture: str) -> None:
    model = new_model(architecture, len(build_tokenizer()), seed=0)
    recorder = RouterRecorder(model)
    batch = Trainer(TrainingPlan(architecture, 1.0, rows=1), model).source.draw()
    with recorder.recording(), torch.no_grad():
        model(**batch.model_inputs())
    routers = 8 if architecture == "ernie4_5_vl_moe" else 4
    assert len(router_modules(model)) == len(recorder.chosen) == routers
    assert 1.0 <= float(balance_loss(recorder, architecture == "glm4v_moe")) < 8.0


def test_a_missing_model_says_how_to_train_it() -> None:
    with pytest.raises(UsageError, match="vlm.train"):
        trained_folder("no_such_architecture")
