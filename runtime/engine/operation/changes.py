"""Fields of the configuration that a running engine can change, and the stages that must start again for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ....configs.schema import Config
from ....errors import UsageError

RELOADABLE: dict[str, tuple[str, ...]] = {
    "expert_memory": ("compute", "loader"),
    "policy": ("loader",),
    "rank_victims": ("loader",),
    "reads_in_flight": ("loader",),
    "verify_reads": ("loader",),
    "predictor": ("predictor",),
    "predictor_file": ("predictor",),
    "oracle_routes": ("predictor",),
}
"""Field -> stages that read it. None of them changes a bit of any result (I1a, I2)."""
ORDER = ("predictor", "compute", "loader")
"""Order in which stages end: the loader stays until compute has ended its step."""


def change_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return `config` with these fields changed.

    Raises UsageError for no change, for a field that a running engine cannot change, and for a value that is not
    allowed.
    """
    if not changes:
        raise UsageError("nothing to change was named", "reload", f"Name one of: {', '.join(RELOADABLE)}")
    for name in changes:
        _require_reloadable(name)
    try:
        return msgspec.convert({**msgspec.structs.asdict(config), **changes}, Config)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), "reload", f"Fields that can be changed: {', '.join(RELOADABLE)}") from error


def stages_to_restart(changes: Mapping[str, Any]) -> list[str]:
    """Return the stages that must start again for these changes, in the order in which they end."""
    concerned = {stage for name in changes for stage in RELOADABLE[name]}
    return [stage for stage in ORDER if stage in concerned]


def _require_reloadable(name: str) -> None:
    if name in RELOADABLE:
        return
    known = name in Config.__struct_fields__
    what = "cannot be changed while the engine runs" if known else f"is no option: '{name}'"
    remedy = f"Stop the engine and start it anew, or change: {', '.join(RELOADABLE)}"
    raise UsageError(what, name if known else "reload", remedy)
