"""`accelerate` with weights on disk: as many layers as fit stay in memory, the others are read whenever they run.

Arguments: the folder of its packages, the folder of the weights as accelerate writes them; or its packages, a
checkpoint, --write, and the folder to be written.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .kind import CORES, Contender
from .order import Answer, give, read_order
from .packages import bench_folder, install, run
from .transformers_steps import run_cases

PACKAGE = "accelerate==1.15.0"

KEPT = 0.4
"""Of the limit: layers kept in memory. A layer that is read takes memory too, as do torch and the page cache."""


class AccelerateDisk(Contender):
    name = "accelerate disk offload"
    module = "accelerate_disk"
    threads = (CORES,)
    trial_steps = 0
    """What one step has read the next one reads again."""

    def prepare(self, model: Path) -> None:
        packages, folder = install("accelerate", [PACKAGE]), _offloaded(model)
        if folder.exists():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        writing = [*super().command(model), str(packages), str(model), "--write", str(partial)]
        run(writing, f"accelerate cannot write the weights of {model.name}")
        partial.rename(folder)

    def command(self, model: Path) -> list[str]:
        return [*super().command(model), str(install("accelerate", [PACKAGE])), str(_offloaded(model))]

    def files(self, model: Path) -> list[Path]:
        return sorted(_offloaded(model).glob("*.dat"))


def _offloaded(model: Path) -> Path:
    return bench_folder() / f"{model.name}-accelerate"


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    if sys.argv[3:4] == ["--write"]:
        write(sys.argv[2], Path(sys.argv[4]))
        return
    order, begun = read_order(), time.perf_counter()
    model = load(order.model, Path(sys.argv[2]), int(order.limit_bytes * order.options.get("kept", KEPT)))
    ready_s = time.perf_counter() - begun
    give(Answer(ready_s=ready_s, cases=run_cases(model, order)))


def load(model_folder: str, offloaded: Path, kept_bytes: int) -> Any:
    """The model with its first modules in memory, at most `kept_bytes`, the rest on disk."""
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
    """Writes the weights as accelerate reads them (needs the whole model in memory, once)."""
    import torch
    from accelerate.utils import offload_state_dict  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    offload_state_dict(str(folder), model.state_dict())


if __name__ == "__main__":
    main()
