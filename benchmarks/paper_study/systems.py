"""List the systems of the paper's comparison, each a preset of the same runtime with what it changes."""

from __future__ import annotations

from ..experiments.systems import SYSTEMS as EXPERIMENTS
from ..experiments.systems import Option, System

EXPERTFLOW, ORACLE = "ExpertFlow, path", "ExpertFlow, oracle"
ON_DEMAND, CACHE_MOE, SE_MOE = "on demand", "Cache-MoE", "SE-MoE"
BASELINES = (CACHE_MOE, SE_MOE, ON_DEMAND, "Pregated-MoE", "MoE-Infinity", "static", "previous step")


def _expertflow(predictor: str, what: str) -> System:
    return System(f"ExpertFlow, {predictor}", "main", "cpu-host", what, {"predictor": predictor}, settles=True)


def _of_experiments(name: str) -> System:
    return next(system for system in EXPERIMENTS if system.name == name)


def _part(name: str, what: str, **options: Option) -> System:
    return System(name, "ablation", "cpu-host", what, {"predictor": "path"} | options, settles=True)


SYSTEMS = [
    _expertflow("path", "the predictor that the model's folder ships; forecasts, hints, units and grouping that pay"),
    *map(_of_experiments, BASELINES),
    _expertflow("oracle", "the routing of an earlier run of the same requests in place of a predictor"),
    _expertflow("table", "a table of token and experts, learned while it runs"),
    System("ExpertFlow, paper", "main", "plec", "the paper's cache, transformer and K-means", needs="paper"),
    _part("no hints", "path, but nobody names the next layer's experts", hints="off"),
    _part("no forecasts", "hints alone", predictor="none"),
    _part("LRU victims", "path, but the least recently used expert goes", policy="lru", rank_victims="never"),
    _part("slots per layer", "path, but every layer has as many slots", slot_sharing="layer"),
    _part("no grouping", "path, but rows keep their unit", grouping="off"),
    _part("one unit", "path, but a single unit", units="one", grouping="off"),
]
"""Every system, those that tell most first."""
NAMES = [system.name for system in SYSTEMS]
MAIN = (EXPERTFLOW, CACHE_MOE, SE_MOE, ON_DEMAND, ORACLE)
"""Systems of the sweeps. All others run in the base case alone."""
GROUPS = (
    (CACHE_MOE, SE_MOE),
    (ON_DEMAND, ORACLE),
    ("Pregated-MoE", "MoE-Infinity", "static", "previous step"),
    ("ExpertFlow, table", "ExpertFlow, paper", "no hints", "no forecasts"),
    ("LRU victims", "slots per layer", "no grouping", "one unit"),
)
"""Systems that are measured side by side with ExpertFlow; the first two groups are those of MAIN."""
CLAIMS = {SE_MOE: "2.0–5.9×", CACHE_MOE: "1.9–2.2×"}
"""What the paper says of ExpertFlow's throughput over theirs."""


def find_system(name: str) -> System:
    """Return the system of this name. Raises StopIteration if there is none."""
    return next(system for system in SYSTEMS if system.name == name)
