"""Virtual environments for clients that others have written, each of its own, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from ..contenders.packages import bench_folder, run

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
"""No client needs anything but the server."""


class Environment:
    """A virtual environment with the packages of one client."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"

    def run(
        self,
        words: list[str],
        timeout_s: float = 600.0,
        variables: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in `folder`; `words[0]` is its name in `bin`."""
        command = [str(self.python.with_name(words[0])), *words[1:]]
        environment = {**os.environ, **OFFLINE, **(variables or {})}
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )


def prepare(name: str, requirements: list[str], with_ours: bool = False) -> Environment:
    """Return the environment of a client; the first call makes it. Raises Missing if a package cannot be installed.

    `with_ours`: the packages of this environment (torch, transformers) are there, too, behind its own.
    """
    digest = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:8]
    folder = bench_folder() / "clients" / f"{name}-{digest}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False)
        if with_ours:
            site = next(folder.glob("lib/python*/site-packages"))
            (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        if requirements:
            run([*pip, *requirements], f"{name} does not install")
        (folder / "ready").touch()
    return Environment(folder)
