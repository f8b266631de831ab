"""Contenders whose experts are stored in 4 or 8 bits: ours on a quantised copy, llama.cpp on a quantised GGUF."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from expertflow.workers.checkpoint.headers import checkpoint_files, read_headers
from expertflow.workers.checkpoint.shards import OutputTensor, copy_other_files, write_shards

from .llama_cpp import LlamaCpp
from .older import REPOSITORY, OlderExpertFlow, unpack_commit
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
        self.copy(model)

    def files(self, model: Path) -> list[Path]:
        return sorted(self.copy(model).glob("*.safetensors"))

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(self.copy(model))]

    def copy(self, model: Path) -> Path:
        """Return the folder that it runs."""
        return quantised_folder(model, self._bits)


class ByNameExpertFlow(SmallExpertFlow):
    """ExpertFlow on the same tensors in the order of their names."""

    def __init__(self, bits: int, share: str = "", **options: Any) -> None:
        super().__init__(bits, share, **options)
        self.name = f"{self.name}, by name"

    def copy(self, model: Path) -> Path:
        return folder_by_name(model, self._bits)


class OlderByName(OlderExpertFlow):
    """ExpertFlow at a commit on the same, with the compiled kernels of today: a commit is unpacked, not built."""

    def __init__(self, commit: str, bits: int, share: str = "") -> None:
        super().__init__(commit, share, experts_in="packed")
        self.name = f"{self.name}, by name"
        self._bits = bits

    def prepare(self, model: Path) -> None:
        folder_by_name(model, self._bits)
        target = unpack_commit(self._commit) / "expertflow" / "workers" / "kernels"
        for library in (REPOSITORY / "workers" / "kernels").glob("_native*.so"):
            shutil.copyfile(library, target / library.name)

    def files(self, model: Path) -> list[Path]:
        return sorted(folder_by_name(model, self._bits).glob("*.safetensors"))

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(folder_by_name(model, self._bits))]


def quantised_folder(model: Path, bits: int) -> Path:
    """Return the folder of a quantised copy of a model; written at the first call, and when their order changes."""
    from expertflow.workers.quantize.writing import ORDER

    folder = bench_folder() / f"{model.name}-{bits}bit-{ORDER}"
    if not folder.exists():
        quantised_copy(model, folder, bits)
    return folder


def quantised_copy(model: Path, copy: Path, bits: int) -> None:
    """Write the copy, as `expertflow quantize` does."""
    from expertflow.workers.quantize.plan import Precision
    from expertflow.workers.quantize.writing import quantise_checkpoint

    quantise_checkpoint(model, copy, Precision(bits, GROUP), lambda *progress: None)


def folder_by_name(model: Path, bits: int) -> Path:
    """Return the folder of the copy with its tensors in the order of their names; written at the first call."""
    source = quantised_folder(model, bits)
    folder = source.with_name(f"{source.name}-by-name")
    if not folder.exists():
        unfinished = folder.with_suffix(".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_by_name(source, unfinished)
        unfinished.rename(folder)
    return folder


def _write_by_name(source: Path, destination: Path) -> None:
    """Write the same tensors in the order of their names."""
    destination.mkdir()
    files = checkpoint_files(source)
    tensors = [
        OutputTensor(tensor.name, tensor.dtype, tensor.shape, tensor.count_bytes, partial(tensor.read, file))
        for name, tensor in sorted(read_headers(files).items())
        for file in (files[tensor.file],)
    ]
    write_shards(destination, tensors, "ordering", lambda *progress: None)
    copy_other_files(source, destination)
    (destination / "config.json").write_bytes((source / "config.json").read_bytes())


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
