"""Run `accelerate` with weights on disk, or in memory and handed to each module as it runs.

Arguments: the folder of its packages, then `cpu`; `disk` and the folder of the weights as accelerate writes them; or
`write`, a checkpoint, and the folder to be written.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .base import CORES, Contender, TaskResult, read_task, write_result
from .packages import bench_folder, install, run
from .resident import load_resident, run_cases

PACKAGE = "accelerate==1.15.0"

KEPT = 0.4
"""Share of the limit for layers kept in memory. A layer that is read takes memory, as do torch and the page cache."""


class Accelerate(Contender):
    """Install accelerate and start this module with it."""

    module = "accelerate_offload"

    def prepare(self, model: Path) -> None:
        install("accelerate", [PACKAGE])

    def mode(self, *words: str) -> list[str]:
        """Return the command with the arguments of one mode."""
        return [*super().command(Path()), str(install("accelerate", [PACKAGE])), *words]


class AccelerateDisk(Accelerate):
    """Keep as many layers in memory as fit; read the others whenever they run."""

    name = "accelerate disk offload"
    threads = (CORES,)
    trial_steps = 0
    """No trial: each step reads again what the one before it has read."""

    def prepare(self, model: Path) -> None:
        super().prepare(model)
        folder = _offloaded(model)
        if folder.exists():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run(self.mode("write", str(model), str(partial)), f"accelerate cannot write the weights of {model.name}")
        partial.rename(folder)

    def command(self, model: Path) -> list[str]:
        return self.mode("disk", str(_offloaded(model)))

    def files(self, model: Path) -> list[Path]:
        return sorted(_offloaded(model).glob("*.dat"))


class AccelerateCpu(Accelerate):
    """Keep all weights in memory; where compute is on the CPU too this saves nothing, but the line is not missing."""

    name = "accelerate CPU offload"

    def command(self, model: Path) -> list[str]:
        return self.mode("cpu")


def _offloaded(model: Path) -> Path:
    return bench_folder() / f"{model.name}-accelerate"


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    if sys.argv[2] == "write":
        write(sys.argv[3], Path(sys.argv[4]))
        return
    task, begun = read_task(), time.perf_counter()
    if sys.argv[2] == "cpu":
        model = load_on_cpu(task.model)
    else:
        model = load(task.model, Path(sys.argv[3]), int(task.limit_bytes * task.options.get("kept", KEPT)))
    ready_s = time.perf_counter() - begun
    write_result(TaskResult(ready_s=ready_s, cases=run_cases(model, task)))


def load_on_cpu(folder: str) -> Any:
    """Load the whole model into memory and hand its weights to each module as it runs."""
    import torch
    from accelerate import cpu_offload  # pyright: ignore[reportMissingImports]

    model = load_resident(folder, "grouped_mm")
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def load(model_folder: str, offloaded: Path, kept_bytes: int) -> Any:
    """Load the model with its first modules in memory, at most `kept_bytes`, the rest on disk."""
    import torch
    from accelerate import (  # pyright: ignore[reportMissingImports]
        dispatch_model,
        infer_auto_device_map,
        init_empty_weights,
    )
    from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation="grouped_mm")
    kept: dict[Any, Any] = {"cpu": max(kept_bytes, 1), "disk": 10**15}
    places = infer_auto_device_map(model, kept, no_split_module_classes=model._no_split_modules)
    weights = OffloadedWeightsLoader(save_folder=offloaded)
    for name, _ in model.named_parameters():
        if _place(places, name) == "cpu":
            set_module_tensor_to_device(model, name, "cpu", value=weights[name])
    if set(places.values()) != {"cpu"}:
        model = dispatch_model(model, places, main_device=torch.device("cpu"), offload_dir=offloaded, force_hooks=True)
    return model.eval()


def _place(places: dict[str, Any], name: str) -> Any:
    return next(
        place for module, place in places.items() if not module or name == module or name.startswith(module + ".")
    )


def write(model_folder: str, folder: Path) -> None:
    """Write the weights as accelerate reads them (needs the whole model in memory, once)."""
    import torch
    from accelerate.utils import offload_state_dict  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    offload_state_dict(str(folder), model.state_dict())


if __name__ == "__main__":
    main()
