"""Contenders whose experts are stored in 4 or 8 bits: ours on a quantised copy, llama.cpp on a quantised GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .llama_cpp import LlamaCpp
from .ours import ExpertFlow
from .packages import bench_folder, run

GROUP = 32
"""Weights that share a scale, as in llama.cpp's Q4_0 and Q8_0."""


class SmallExpertFlow(ExpertFlow):
    """ExpertFlow on a copy whose experts have so many bits, held as they are stored."""

    def __init__(self, bits: int, share: str = "", **options: Any) -> None:
        super().__init__(share, experts_in="packed", **options)
        self.name = f"ExpertFlow {bits} bits {share}".strip()
        self._bits = bits

    def prepare(self, model: Path) -> None:
        if not self._copy(model).exists():
            quantised_copy(model, self._copy(model), self._bits)

    def files(self, model: Path) -> list[Path]:
        return sorted(self._copy(model).glob("*.safetensors"))

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(self._copy(model))]

    def _copy(self, model: Path) -> Path:
        return bench_folder() / f"{model.name}-{self._bits}bit"


def quantised_copy(model: Path, copy: Path, bits: int) -> None:
    """Write the copy, as `expertflow quantize` does."""
    from expertflow.workers.quantize.plan import Precision
    from expertflow.workers.quantize.writing import quantise_checkpoint

    quantise_checkpoint(model, copy, Precision(bits, GROUP), lambda *progress: None)


class SmallLlamaCpp(LlamaCpp):
    """llama.cpp on the same weights, quantised by its own function to `kind`: Q4_0 or Q8_0.

    With `only_experts` all other tensors stay in bfloat16, as `expertflow quantize` leaves them.
    """

    def __init__(self, kind: str, only_experts: bool = False) -> None:
        self.name = f"llama.cpp {kind} experts" if only_experts else f"llama.cpp {kind}"
        self._arguments = [kind, "experts"] if only_experts else [kind]

    def prepare(self, model: Path) -> None:
        plain = LlamaCpp()
        plain.prepare(model)
        if not self._weights(model).exists():
            partial = self._weights(model).with_suffix(".partial")
            command = [str(self._program.with_name("quantise")), *map(str, [*plain.files(model), partial])]
            run([*command, *self._arguments], f"{self.name} is not written")
            partial.rename(self._weights(model))

    def command(self, model: Path) -> list[str]:
        return [str(self._program), str(self._weights(model))]

    def files(self, model: Path) -> list[Path]:
        return [self._weights(model)]

    def options(self, limit_bytes: int) -> dict[str, Any]:
        """Without repacking: its kernels for repacked Q4_0 end with an illegal instruction where this was measured."""
        return {"repack": False}

    def _weights(self, model: Path) -> Path:
        return bench_folder() / f"{model.name}.{'-'.join(self._arguments)}.gguf"


class GgufExpertFlow(ExpertFlow):
    """ExpertFlow on the very file that `llama` opens, experts held as they are stored."""

    def __init__(self, llama: SmallLlamaCpp, share: str = "") -> None:
        super().__init__(share, experts_in="packed")
        self.name = f"ExpertFlow {llama.name.removeprefix('llama.cpp ')} {share}".strip()
        self._llama = llama

    def prepare(self, model: Path) -> None:
        self._llama.prepare(model)

    def files(self, model: Path) -> list[Path]:
        return self._llama.files(model)

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(self.files(model)[0])]
