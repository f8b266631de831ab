"""Expected speed of a model from measured rates: what a step computes, what it reads, and how much of that overlaps.

A step takes at least the longer of computing and reading (the bound), and the part of the shorter one that does not
overlap. Computing follows from the kernel table of this machine, reading from the rate of the model's own files, and
the misses from the share of the experts that slots hold.
"""

from __future__ import annotations

from math import log
from typing import Literal

import msgspec

from ...workers.checkpoint.survey import ModelSizes
from ...workers.kernels.table import KernelTable, LinearShape
from .kernel_times import shape_s, streaming_s

OVERLAP = 0.1
"""Share of the shorter of computing and reading that runs beside the longer. On two cores hardly any: threads that read
take the core of one that computes (docs/results/matrix.md, under-limit.md: steps of a quarter and half of the experts).
"""
LOAD_S = 400e-6
"""Time that a missing expert takes besides its bytes: messages, a call of its own. From the same figures."""
STEP_S = 4e-3
"""Time of a step besides its layers: rows in and out, sampling. From the same figures, with all experts in slots."""
LAYER_S = 700e-6
"""Time of a layer besides its large products: attention, norms, router, calls. From the same figures."""
ROW_S = 12e-6
"""The same for each row."""
GROUPED = 0.7
"""Time of an expert in one call with others, to its time alone, which the kernel table has. From the same figures."""
PRIOR_REUSE = 1.5
"""Reuse of the built-in model, whose routing is a trained one's (docs/results/matrix.md: 1.50 to 1.67 at one row)."""

LEAST_SHARE = 1e-4

Bound = Literal["computing", "reading"]


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """Habits of a model's routing: how many experts rows share, and how soon experts are used again."""

    reuse: float = PRIOR_REUSE
    """Slots that hold a share s of the experts miss (1 − s) ** reuse of what one row uses; 1 is uniform routing."""
    reuse_of_rows: int = 1
    """Rows of a step for which `reuse` holds."""
    distinct: float = 1.0
    """Distinct experts of a layer, to those of rows that choose at random."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Measured rates of this machine for one model."""

    kernels: KernelTable
    read_bytes_per_s: float
    """Rate at which experts come into slots; infinite where none has to."""
    latency_s: float = 0.0
    """Time of an expert on an emulated link before its first byte."""
    correction: float = 1.0
    """Time of computing to what the kernel table says, by earlier runs."""


class StepForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Expected time of one step."""

    rows: int
    """Tokens that it computes: one a sequence in a decode step, a prompt's in a prefill."""
    compute_s: float
    read_s: float
    misses: float
    """Experts that it finds in no slot."""
    step_s: float

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens that such steps compute in a second."""
        return self.rows / self.step_s

    @property
    def bound(self) -> Bound:
        """Return which of the two takes longer."""
        return "reading" if self.read_s > self.compute_s else "computing"


def forecast_step(sizes: ModelSizes, slots: int, rows: int, rates: Rates, routing: Routing) -> StepForecast:
    """Return the expected time of a step of `rows` tokens with so many expert slots."""
    used = distinct_experts(sizes, rows, routing)
    misses = sizes.layers * used * miss_share(slots / sizes.expert_count, rows, routing)
    computing = compute_s(sizes, rates.kernels, rows, used) * rates.correction
    read_bytes = sizes.stored_expert_bytes or sizes.expert_bytes
    reading = misses * (read_bytes / rates.read_bytes_per_s + rates.latency_s + LOAD_S)
    step = max(computing, reading) + (1 - OVERLAP) * min(computing, reading)
    return StepForecast(rows=rows, compute_s=computing, read_s=reading, misses=misses, step_s=step)


def distinct_experts(sizes: ModelSizes, rows: int, routing: Routing) -> float:
    """Return the expected number of distinct experts of a layer that `rows` tokens use; at least one token's."""
    top_k = min(sizes.top_k, sizes.experts)
    at_random = sizes.experts * (1 - (1 - top_k / sizes.experts) ** rows)
    return min(max(at_random * routing.distinct, top_k), sizes.experts)


def miss_share(share: float, rows: int, routing: Routing) -> float:
    """Return the share of the used experts that are in no slot, where slots hold `share` of all experts.

    What rows use together is nearer to uniform, the more there are.
    """
    reuse = 1 + (routing.reuse - 1) * (routing.reuse_of_rows / rows) ** 0.5 if routing.reuse > 1 else routing.reuse
    return max(0.0, 1 - share) ** reuse


def reuse_of(misses: float, share: float) -> float:
    """Return the reuse by which slots for `share` of the experts miss this share of what is used."""
    return log(min(max(misses, LEAST_SHARE), 1 - LEAST_SHARE)) / log(1 - share)


def compute_s(sizes: ModelSizes, kernels: KernelTable, rows: int, used: float) -> float:
    """Return the seconds that a step of `rows` tokens computes with all of its `used` experts a layer in slots."""
    rows_each = max(rows * sizes.top_k / used, 1.0)
    experts = sizes.layers * used * expert_s(sizes, kernels, rows_each) * GROUPED
    linears = sum(each.count * linear_s(each.shape, kernels, rows) for each in sizes.linears)
    return STEP_S + experts + linears + sizes.layers * (LAYER_S + ROW_S * rows)


def expert_s(sizes: ModelSizes, kernels: KernelTable, rows: float) -> float:
    """Return the seconds of one expert on `rows` rows."""
    key = next((key for key in kernels.times_us if key.startswith("expert ")), "")
    return shape_s(kernels, key, sizes.expert_bytes, rows) if key else streaming_s(kernels, sizes.expert_bytes, rows)


def linear_s(shape: LinearShape, kernels: KernelTable, rows: float) -> float:
    """Return the seconds of one linear layer of the skeleton on `rows` rows."""
    if shape.key in kernels.times_us:
        return shape_s(kernels, shape.key, shape.weight_bytes, rows)
    return streaming_s(kernels, shape.weight_bytes, rows)
