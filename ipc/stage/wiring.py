"""Links between the stages, and the messages that each link allows."""

from __future__ import annotations

from typing import Any

import msgspec

from ..messages.to_compute import COMPUTE_FROM_LOADER, COMPUTE_FROM_SCHEDULER
from ..messages.to_loader import LOADER_FROM_COMPUTE, LOADER_FROM_PREDICTOR
from ..messages.to_predictor import PREDICTOR_FROM_LOADER, PREDICTOR_FROM_SCHEDULER
from ..messages.to_scheduler import FROM_COMPUTE, FROM_PREDICTOR

AnyDecoder = msgspec.msgpack.Decoder[Any]


def decoders_of(receiver: str) -> dict[str, AnyDecoder]:
    """Return peer -> decoder of its messages for the stage `receiver`; empty for an unknown stage."""
    wiring: dict[str, dict[str, AnyDecoder]] = {
        "scheduler": {"compute": FROM_COMPUTE, "predictor": FROM_PREDICTOR},
        "predictor": {"scheduler": PREDICTOR_FROM_SCHEDULER, "loader": PREDICTOR_FROM_LOADER},
        "loader": {"predictor": LOADER_FROM_PREDICTOR, "compute": LOADER_FROM_COMPUTE},
        "compute": {"scheduler": COMPUTE_FROM_SCHEDULER, "loader": COMPUTE_FROM_LOADER},
    }
    return wiring.get(receiver, {})
