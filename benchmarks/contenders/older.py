"""Run ExpertFlow as it was at an older commit of this repository, by the same script as today's.

The commit is unpacked once into the user's cache, as a package `expertflow` beside a link to this folder. A path set
to that cache makes the interpreter of today's environment find the older package first, in the engine's own processes
too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from .base import Missing
from .ours import ExpertFlow
from .packages import bench_folder, run

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
REMEDY = "run from a clone that has its history (git fetch --unshallow)"


class OlderExpertFlow(ExpertFlow):
    """Hold this share of the experts, as ExpertFlow at a commit."""

    def __init__(self, commit: str, share: str = "", **options: Any) -> None:
        super().__init__(share, **options)
        self.name = f"commit {commit} {share}".strip()
        self._commit = commit

    def prepare(self, model: Path) -> None:
        unpack_commit(self._commit)

    def command(self, model: Path) -> list[str]:
        return [sys.executable, "-P", "-m", f"{HERE.name}.{self.module}"]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(unpack_commit(self._commit))}


def unpack_commit(commit: str, repository: Path = REPOSITORY) -> Path:
    """Return the folder that holds the commit as the package `expertflow`, and a link to the contenders of today.

    Raises Missing without git, outside a clone, or if the commit is not in it.
    """
    folder = bench_folder() / "commits" / _full_name(commit, repository)
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "expertflow").mkdir(parents=True)
        packed = partial / "commit.tar"
        run(["git", "-C", str(repository), "archive", "-o", str(packed), folder.name], f"{commit} is not unpacked")
        with tarfile.open(packed) as files:
            files.extractall(partial / "expertflow", filter="data")
        packed.unlink()
        partial.rename(folder)
    _link(folder / HERE.name, HERE)
    return folder


def _full_name(commit: str, repository: Path) -> str:
    git = ["git", "-C", str(repository), "rev-parse", "--verify", "--quiet", "--end-of-options"]
    try:
        found = subprocess.run([*git, f"{commit}^{{commit}}"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Missing(f"commit {commit} cannot be had: no git here") from error
    if found.returncode:
        reason = " ".join(found.stderr.strip().splitlines()[:1]) or "it is not in this clone"
        raise Missing(f"commit {commit} cannot be had: {reason}; {REMEDY}")
    return found.stdout.strip()


def _link(link: Path, target: Path) -> None:
    """Point the link to the contenders of the repository that is used now."""
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
