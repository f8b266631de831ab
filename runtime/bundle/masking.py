"""Removal of secrets and names from what goes into a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from msgspec import structs

from ...ipc.messages import Activity

MASK = "***"
_SECRET_NAME = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(hf_|sk-|ghp_|AKIA)[A-Za-z0-9_\-]{8,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def mask_values(values: dict[str, Any], home: Path | None = None) -> dict[str, Any]:
    """Return options without secrets, and with `~` in place of the home folder.

    A text option whose name speaks of a secret is masked, and every part of a text that looks like one.
    """
    return {name: _mask(name, value, str(home or Path.home())) for name, value in values.items()}


def mask_activity(activity: Activity) -> Activity:
    """Return an activity in which requests have numbers in place of their ids, and no users: clients choose both."""
    if activity.requests is None:
        return activity
    numbered = [
        structs.replace(request, request_id=str(number), user=MASK if request.user else "")
        for number, request in enumerate(activity.requests.requests)
    ]
    return structs.replace(activity, requests=structs.replace(activity.requests, requests=numbered))


def _mask(name: str, value: Any, home: str) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_NAME.search(name):
        return MASK
    masked = _SECRET_VALUE.sub(MASK, value)
    return masked.replace(home, "~") if len(home) > 1 else masked
