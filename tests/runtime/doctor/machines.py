"""Machines for the doctor: facts of a sound one, and this one made unfit on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from expertflow.runtime.doctor.facts import MachineFacts
from expertflow.runtime.doctor.versions import TESTED

GB = 10**9
SOUND = MachineFacts(
    available_bytes=16 * GB, machine_bytes=32 * GB, group="", group_bytes=0, shared_error="", shm_bytes=16 * GB,
    run_folder="/tmp", run_free_bytes=GB, run_error="", locked_bytes=8 << 20, open_files=4096, cores=8,
    allowed_cores=-1, compute_threads=7, torch_cuda="13.0", python="3.12.1", versions=dict(TESTED),
)  # fmt: skip

EXAMINE = """
import json, msgspec
from expertflow.configs.schema import Config
from expertflow.runtime.doctor.checks import judge_machine
from expertflow.runtime.doctor.facts import gather_facts
config = Config(device={device!r})
print(msgspec.json.encode(judge_machine(gather_facts(config), config, {{}})).decode())
{more}
"""


def examined(
    device: str = "cpu", before: Callable[[], None] | None = None, within: str = "", more: str = "", **environment: str
) -> dict[str, dict[str, Any]]:
    """Return name -> finding of a process that was made unfit: `before` runs in it, `within` in a shell before it.

    `more` is run afterwards, and must not fail.
    """
    command = [sys.executable, "-c", EXAMINE.format(device=device, more=more)]
    if within:
        command = ["unshare", "-m", "sh", "-ec", f'{within}; exec "$@"', "sh", *command]
    ended = subprocess.run(
        command,
        preexec_fn=before,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {finding["name"]: finding for finding in json.loads(ended.stdout.splitlines()[0])}
