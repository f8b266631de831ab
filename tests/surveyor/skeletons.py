"""A skeleton and what `from_pretrained` gives, to be compared tensor by tensor."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import cast

import torch
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.layer import ExpertFeed
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

NO_FEED = cast(ExpertFeed, None)


def load_both(folder: Path, dtype: str) -> tuple[Survey, PreTrainedModel, PreTrainedModel]:
    survey = survey_checkpoint(str(folder), dtype=dtype)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return survey, load_model(survey, NO_FEED, RoutingCollector()), reference


def expert_names(survey: Survey) -> set[str]:
    return {f"{module}.{tensor.name}" for module in survey.module_names for tensor in survey.tensors}


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and all buffers, those that are not saved included."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def shared_storage(model: nn.Module, left_out: set[str]) -> set[frozenset[str]]:
    """Groups of names that are one tensor."""
    names: defaultdict[int, set[str]] = defaultdict(set)
    for name, tensor in tensors(model).items():
        if name not in left_out:
            names[tensor.data_ptr()].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def assert_skeleton_equal(survey: Survey, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    mine, reference = tensors(ours), tensors(theirs)
    assert set(reference) - set(mine) == expert_names(survey)
    assert set(mine) <= set(reference)
    for name, tensor in mine.items():
        assert tensor.dtype == reference[name].dtype, name
        assert tensor.device == reference[name].device, name
        assert torch.equal(tensor, reference[name]), name
    assert shared_storage(ours, set()) == shared_storage(theirs, expert_names(survey))
    assert not any(module.training for module in ours.modules())
    assert survey.skeleton_bytes == sum({id(t): t.nbytes for t in [*ours.parameters(), *ours.buffers()]}.values())
