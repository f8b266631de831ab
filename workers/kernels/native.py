"""The project's own C kernels. In this branch alone there are none: the file is replaced by the one of branch kern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Activation = Any


class NativeKernels:
    """The interface of the kernels."""

    isa = ""

    @classmethod
    def open(cls, isa: str = "") -> NativeKernels | None:
        """Return None: the library is not built."""
        return None

    def isas(self) -> list[str]:
        """Return every variant that this CPU can run."""
        return []

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply rows [n, in] by weight [out, in] and add bias [out]: [n, out]."""
        raise NotImplementedError

    def takes_linear(self, weight: Tensor) -> bool:
        """Return whether `linear` takes this weight."""
        return False

    def takes_expert(self, module: Any) -> bool:
        """Return whether `experts` takes the experts of this module."""
        return False

    def experts(
        self,
        activation: Activation,
        weights: Sequence[dict[str, Tensor]],
        bounds: Sequence[tuple[int, int]],
        gathered: Tensor,
        products: Tensor,
    ) -> None:
        """Compute rows `bounds[i]` of `gathered` through `weights[i]` into `products`."""
        raise NotImplementedError

    def activation_of(self, module: Any) -> Activation | None:
        """Return the activation of a module; None if it is unknown."""
        return None


def missing_reason() -> str:
    """Return why `NativeKernels.open` returned None."""
    return "the library is not built"
