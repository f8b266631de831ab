"""List what is compared: ExpertFlow, the baselines, and ExpertFlow without one of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Group = Literal["main", "baseline", "ablation"]
Option = str | int | float


@dataclass(frozen=True)
class System:
    """Name a preset and what it changes."""

    name: str
    group: Group
    preset: str
    what: str
    options: dict[str, Option] = field(default_factory=dict)
    needs: Literal["", "gates", "paper"] = ""
    """A trained file that it cannot do without."""
    settles: bool = False
    """It tries its ways at first, and keeps the fastest: it is warmed up until that is done."""

    @property
    def takes_path(self) -> bool:
        """Check whether it forecasts with ExpertFlow's own trained predictor, where the model has one."""
        return self.preset == "cpu-host" and "predictor" not in self.options


EXPERTFLOW, SE_MOE, CACHE_MOE = "ExpertFlow", "SE-MoE", "Cache-MoE"
ALL_PARTS = "all parts"
_PREVIOUS: dict[str, Option] = {
    "predictor": "previous",
    "prediction": "on",
    "rank_victims": "always",
    "belief": "literal",
}
_PARTS: dict[str, Option] = {"units": "two", "grouping": "swap", "prediction": "on"}


def _variation(name: str, what: str, **options: Option) -> System:
    return System(name, "baseline", "on-demand", what, options)


def _without(name: str, what: str, **options: Option) -> System:
    return System(name, "ablation", "cpu-host", what, _PARTS | options)


SYSTEMS = [
    System(EXPERTFLOW, "main", "cpu-host", "forecasts, hints, and what pays of units and grouping", settles=True),
    System("on demand", "main", "on-demand", "LRU over all layers, a miss is loaded"),
    System(CACHE_MOE, "main", "cache-moe", "LRU in each layer, a miss is loaded"),
    System(SE_MOE, "main", "se-moe", "a ring of layers: all experts of the coming layers are loaded"),
    System("Pregated-MoE", "main", "pregated-moe", "trained gates name the next layer's experts", needs="gates"),
    System("MoE-Infinity", "baseline", "moe-infinity", "activation matrices of earlier requests predict"),
    System("PLEC, paper's predictor", "baseline", "plec", "the paper's cache and transformer", needs="paper"),
    _variation("LFU", "on demand, the least often used goes", policy="lfu"),
    _variation("LFRU", "on demand, frequency over age", policy="lfru"),
    _variation("least stale", "on demand, experts of the layer that is furthest away go", policy="least-stale"),
    _variation("static", "on demand, the experts used most at first stay", policy="static"),
    _variation("previous step", "the experts of the step before are fetched", **_PREVIOUS),
    _without(ALL_PARTS, "ExpertFlow with two units, grouping, forecasts and hints always on"),
    _without("no hints", "all parts, but nobody names the next layer's experts", hints="off"),
    _without("no forecasts", "all parts, but no predictor (rows cannot be grouped either)", predictor="none"),
    _without("LRU eviction", "all parts, but the least recently used goes", policy="lru"),
    _without("slots per layer", "all parts, but every layer has as many slots", slot_sharing="layer"),
    _without("no grouping", "all parts, but rows keep their unit", grouping="off"),
    _without("one unit", "all parts, but a single unit (so no grouping)", units="one", grouping="off"),
]
