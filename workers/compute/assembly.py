"""Assembles compute from its parts: a skeleton bound to slots in shared memory or on a device, hints, the executor."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from ...ipc.messages import Hint, Message
from ..checkpoint.layout import filled_bytes
from ..checkpoint.survey import Survey
from ..gates.files import load_gates
from ..kernels.dispatch import ExpertKernels, open_unpacker
from ..model.families.base import OutsideExperts
from ..model.unit import RowAbilities
from .device.base import Device
from .device.copy_scheduler import CopyScheduler
from .device.grouped_layer import GroupedExpertsLayer
from .device.layer import DeviceExpertsLayer
from .device.residency import DeviceResidency, DeviceSlotViews
from .executor import Executor
from .experts.hints import Hinter
from .experts.holdings import Holdings
from .experts.next_router import NextRouters
from .experts.residency import Residency
from .experts.routing import RoutingCollector
from .experts.slots import SlotViews, StoreViews
from .experts.tracing import StepTrace
from .lockstep.lockstep import Lockstep
from .sampling.sampler import Chooser, sample
from .skeleton import attach, bind, bind_layers


class LoaderLink(NamedTuple):
    """Functions that exchange messages with the loader."""

    send: Callable[[Message], None]
    receive: Callable[[], list[Any]]
    """Returns the loader's messages without waiting: `HeldFromLoader`, and `Copy` if the slots are on a device."""
    wait: Callable[[], list[Any]]
    """Returns the same, but blocks until there is a message, or raises ComputeStopped."""


class Compute(NamedTuple):
    """The parts of compute that its owner drives."""

    residency: Residency
    executor: Executor


def open_hinter(
    model: PreTrainedModel,
    survey: Survey,
    send: Callable[[Hint], None],
    hints: str = "router",
    gates_file: str = "",
    uncalibrated: bool = False,
) -> Hinter | None:
    """Make the hinter of a configuration (`hints`, `gates_file`); None if hints are off.

    Raises UsageError if the file holds no gates of this model.
    """
    if hints == "off":
        return None
    gates = load_gates(gates_file, survey).to(model.device) if hints == "gates" else None
    source = gates or NextRouters(model, survey.experts)
    return Hinter(source, survey.layers, survey.experts, survey.top_k, send, uncalibrated)


def assemble_compute(
    model: PreTrainedModel,
    survey: Survey,
    slots: int,
    memory: np.ndarray,
    link: LoaderLink,
    device: Device | None = None,
    hinter: Hinter | None = None,
    abilities: RowAbilities | None = None,
    choose: Chooser = sample,
    attachments: Path | None = None,
    trace: StepTrace | None = None,
    store: np.ndarray | None = None,
) -> Compute:
    """Bind a model from `load_unbound` to its slots and make the executor that runs it.

    `memory`, uint8 [bytes], is the slot arena on a CPU and the host store on a device. With a `store`, uint8 [bytes],
    slots refer to experts in it (link = dma). Raises BudgetError if the slots do not fit the device.
    """
    routing = RoutingCollector(trace, survey.layers, survey.encoder_layers)
    holdings = Holdings(slots, survey.layers, survey.experts)
    lockstep: Lockstep | None = None
    if device is None:
        views = SlotViews(memory, survey) if store is None else StoreViews(memory, store, survey)
        residency = Residency(holdings, views, *link, time.monotonic_ns)
        lockstep = bind(model, residency, routing, survey)
    else:
        residency = _device_residency(device, survey, holdings, slots, memory, link)
        _bind_on_device(model, residency, routing, device, survey)
    if hinter is not None:
        attach(hinter, model)
    rows, clock_ns = abilities or RowAbilities(), time.monotonic_ns
    executor = Executor(model, rows, routing, residency, clock_ns, choose, hinter, attachments, device, lockstep)
    return Compute(residency, executor)


def _device_residency(
    device: Device, survey: Survey, holdings: Holdings, slots: int, store: np.ndarray, link: LoaderLink
) -> DeviceResidency:
    """Allocate the slots on the device; copies from the host store (uint8) fill them."""
    memory = device.allocate(slots * survey.stride_bytes)
    sizes = partial(filled_bytes, survey)
    copies = CopyScheduler(device, memory, device.register_store(store), survey.stride_bytes, sizes)
    views = DeviceSlotViews(memory, survey, copies)
    return DeviceResidency(copies, holdings, views, *link, time.monotonic_ns)


def _bind_on_device(
    model: PreTrainedModel, residency: DeviceResidency, routing: RoutingCollector, device: Device, survey: Survey
) -> None:
    """Bind every experts module to slots of the device; layers are grouped if a kernel can compute them so."""
    product = device.grouped_product(residency.views.experts, getattr(torch, survey.dtype))

    def make_layer(layer: int, module: Any) -> DeviceExpertsLayer:
        matrices = {} if isinstance(module, OutsideExperts) else residency.views.matrices(module.is_transposed)
        if product is None or not matrices:
            kernels = ExpertKernels(unpacker=open_unpacker(survey.packings_of(layer), survey.dtype))
            return DeviceExpertsLayer(layer, residency, routing, device, kernels)
        return GroupedExpertsLayer(layer, residency, routing, device, product, matrices)

    bind_layers(model, make_layer)
