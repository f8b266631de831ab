"""`expertflow demo`: streams text from the built-in model and checks every bit."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import tyro
from msgspec import Meta

from ...configs.schema import RANGES, Config, Predictor, Units
from ...configs.user_cache import cache_folder
from ...errors import UsageError
from ..command_line.base import DONE, FAILED, Command
from ..demo.run import RunSpec, run_prompts, show_summary
from ..demo.view import make_view
from ..demo.widened import example_file, widened_copy
from ..engine.preflight import impossible_prompts
from ..monitor.tables import result_console
from ..prompt_sources.prompt_lines import read_prompt_lines
from ..verify.subprocess import show_checks

Stage = Literal["compute", "loader", "predictor", "scheduler"]


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Stream text from a model that does not fit its memory budget, and check the result bit by bit.

    The built-in model is widened once to about 1 GB of experts; a quarter of them is in memory, the rest is read from
    disk ahead of use. Then the same batches run again with everything resident, and with transformers.
    """

    option_groups: ClassVar = {
        "Prompt": ("count", "prompts"),
        "Sampling": ("max_new_tokens",),
        "Model": ("model", "cache"),
        "Memory": ("tier", "expert_memory"),
        "Generation": ("batch_size", "units"),
        "Research": ("predictor", "kill", "timeline", "check"),
    }
    kill: Stage | None = None
    """Kill this stage in the middle: the text pauses and goes on."""
    predictor: Predictor = "auto"
    """Predictor of the experts that come next. none, noise, opposite (always wrong) and oracle (always right) change
    the time it takes, never the text."""
    expert_memory: str = "25%"
    """Memory for experts: bytes (200MB) or a percentage of all of them."""
    tier: Literal["disk", "host"] = "disk"
    """Tier that holds the other experts: the model's files, or shared memory."""
    count: Annotated[int, Meta(ge=1)] = 8
    """Number of prompts to run, spread evenly over those of the file."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 48
    """Tokens for each prompt."""
    batch_size: Annotated[int, RANGES["batch_size"]] = 8
    """Sequences that step together."""
    units: Units = "auto"
    """Groups of sequences in flight: one computes while experts for the other are loaded."""
    timeline: str = ""
    """Write the spans of all stages to this file (opens in Perfetto or chrome://tracing)."""
    check: bool = True
    """Check the run afterwards; --no-check leaves it out."""
    model: str = ""
    """Another model instead of the built-in one; it is run as it is."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Other prompts: a UTF-8 file with one a line."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder in which the widened model is kept (about 1 GB)."""

    def run(self) -> int:
        self._plain_config(self.model, Path())  # a value that cannot be used is refused before the model is made
        spec = RunSpec(self._chosen_prompts(), self.max_new_tokens, self.kill or "")
        if self.model and (errors := impossible_prompts(spec.prompts, self.model)):
            raise errors[0]
        model = self.model or str(widened_copy(example_file("model"), self.cache or cache_folder()))
        # The name must not look like a run directory: those are removed when their engine has ended.
        with tempfile.TemporaryDirectory(prefix="demo-expertflow-") as folder:
            config = self._config(model, Path(folder), spec)
            console = result_console()
            result = run_prompts(config, spec, make_view(console))
            show_summary(console, result, spec.kill)
            holds = not self.check or show_checks(Path(config.record), config, console)
        return DONE if holds else FAILED

    def _chosen_prompts(self) -> list[str]:
        lines = read_prompt_lines([], self.prompts or example_file("prompts.txt"), ids=False)
        if self.count > len(lines):
            raise UsageError(f"there are {len(lines)} prompts, not {self.count}", "count", f"Give 1 to {len(lines)}")
        return [str(lines[index * len(lines) // self.count].prompt) for index in range(self.count)]

    def _config(self, model: str, folder: Path, spec: RunSpec) -> Config:
        config = self._plain_config(model, folder / "run")
        routes = self._record_routes(config, folder, spec) if self.predictor == "oracle" else ""
        return msgspec.structs.replace(config, predictor=self.predictor, oracle_routes=routes)

    def _plain_config(self, model: str, record: Path) -> Config:
        return Config.load(
            model=model,
            expert_memory=self.expert_memory,
            tier=self.tier,
            batch_size=self.batch_size,
            units=self.units,
            timeline=self.timeline,
            record=str(record),
        )

    def _record_routes(self, config: Config, folder: Path, spec: RunSpec) -> str:
        """Run the same prompts once without prediction, and return the recording that the oracle reads."""
        console = result_console()
        console.print("First run, for the oracle to know the routing:")
        routes = str(folder / "routes")
        first = msgspec.structs.replace(config, predictor="none", record=routes, timeline="")
        run_prompts(first, dataclasses.replace(spec, kill=""), make_view(console))
        return routes
