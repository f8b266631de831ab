"""Install the packages that contenders need, in folders of their own: nothing else here ever imports them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from expertflow.configs.user_cache import cache_folder

from .base import Missing

INSTALLING_S = 1800


def bench_folder() -> Path:
    """Return the folder that contenders keep between runs."""
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def install(name: str, requirements: Sequence[str], dependencies: bool = False, without: Sequence[str] = ()) -> Path:
    """Return a folder with these packages; the first call installs them.

    With `dependencies` what they depend on too, but not `without`; else what they import besides is ours.
    """
    folder = bench_folder() / "packages" / name
    if not folder.exists():
        partial = folder.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--target", str(partial)]
        pip += [*(() if dependencies else ("--no-deps",)), *requirements]
        run(pip, f"{name} does not install")
        for left_out in (found for package in without for found in partial.glob(f"{package}*")):
            shutil.rmtree(left_out)
        partial.rename(folder)
    return folder


def run(command: Sequence[str], failing: str, timeout_s: float = INSTALLING_S) -> None:
    """Run a preparing command. Raises Missing with the end of what it said."""
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s)
    except FileNotFoundError as error:
        raise Missing(f"{failing}: no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{failing}: not done after {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        raise Missing(f"{failing}: {' '.join(last) or error}") from error
