"""What every program here has in common: where the server is, and how an answer of the check is written."""

from __future__ import annotations

import json
import os
import sys

URL = os.environ.get("SERVER_URL", "")
"""Without `/v1`."""
MODEL = os.environ.get("SERVER_MODEL", "")
KEY = os.environ.get("SERVER_KEY", "")
PROMPT = "And it came to pass in"
QUESTION = "In the beginning God created"
TOKENS = 12


def answer(**values: object) -> None:
    """Write what a client got, for the script that compares it."""
    sys.stdout.write(json.dumps(values) + "\n")
