"""Puts the parts of compute together for a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ...ipc.messages import ComputeFromLoader, Message
from ..checkpoint.layout import filled_bytes
from ..checkpoint.survey import Survey
from ..model.families.base import OutsideExperts
from .device.base import Device
from .device.copy_scheduler import CopyScheduler
from .device.grouped_layer import GroupedExpertsLayer
from .device.layer import DeviceExpertsLayer
from .device.residency import DeviceResidency, DeviceSlotViews
from .experts.holdings import Holdings
from .experts.routing import RoutingCollector
from .skeleton import bind_layers


def open_residency(
    device: Device,
    survey: Survey,
    slots: int,
    store: np.ndarray,
    send: Callable[[Message], None],
    receive: Callable[[], list[ComputeFromLoader]],
    wait: Callable[[], list[ComputeFromLoader]],
    clock_ns: Callable[[], int],
) -> DeviceResidency:
    """`slots` in memory of the device, filled from the host store (uint8). Raises BudgetError if they do not fit."""
    memory = device.allocate(slots * survey.stride_bytes)
    sizes = partial(filled_bytes, survey)
    traffic = CopyScheduler(device, memory, device.adopt(store), survey.stride_bytes, sizes)
    holdings = Holdings(slots, survey.layers, survey.experts)
    return DeviceResidency(traffic, holdings, DeviceSlotViews(memory, survey, traffic), send, receive, wait, clock_ns)


def bind_on_device(
    model: PreTrainedModel, residency: DeviceResidency, routing: RoutingCollector, device: Device
) -> None:
    """Bind every experts module of a skeleton on the device to its slots: grouped, where a kernel can do it."""
    product = device.grouped_product(residency.views.experts, residency.views.dtype)

    def layer_of(layer: int, module: Any) -> DeviceExpertsLayer:
        matrices = {} if isinstance(module, OutsideExperts) else residency.views.matrices(module.is_transposed)
        if product is None or not matrices:
            return DeviceExpertsLayer(layer, residency, routing, device)
        return GroupedExpertsLayer(layer, residency, routing, device, product, matrices)

    bind_layers(model, layer_of)
