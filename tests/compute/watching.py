"""What every MoE layer of a model gets, and what it chooses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.schedules import Driver
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.hints import Hinter
from expertflow.workers.compute.experts.next_router import NextRouters


class Seen(NamedTuple):
    """One layer of one step: hidden [tokens, width], routes [tokens, top_k]."""

    layer: int
    hidden: torch.Tensor
    routes: np.ndarray


def seen_in_two_steps(runtime: LocalRuntime, source: NextRouters, survey: Survey) -> list[Seen]:
    """A prefill of two prompts and a decode step, in the order in which the layers run."""
    seen: list[Seen] = []

    class Watcher(Hinter):
        def observe(self, layer: int, routes: np.ndarray, hidden: torch.Tensor) -> None:
            seen.append(Seen(layer, hidden.clone(), routes.copy()))

    watcher = Watcher(source, survey.layers, survey.experts, survey.top_k, lambda hint: None)
    for module in source._modules:
        module.expertflow_layer.hinter = watcher  # pyright: ignore
    driver = Driver(runtime, survey.vocabulary)
    driver.prefill(0, [[3, 5, 9, 11], [7, 8, 9, 10]])
    driver.decode(0)
    return seen
