"""Downloads what `make gpu-check` needs besides torch (and numpy), for a machine with a CUDA torch and no network:

    python -m expertflow.benchmarks.gpu.wheels FOLDER --python-version 3.12     (make gpu-wheels OUT=FOLDER)

What depends on what is read from this environment, versions are those of constraints.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..contender.accelerate_disk import PACKAGE

ROOT = Path(__file__).parents[2]
THERE = {"torch", "numpy"}
"""On the machine with the GPU, and with torch what it alone needs."""
BESIDES = ("setuptools", PACKAGE)
"""What installs this package, and a contender, all of whose needs are among ours."""
GLIBC = (17, 24, 27, 28, 31, 34)
"""Minor versions: pip takes a tag literally."""


def main() -> int:
    arguments = _arguments()
    names = [*needed(arguments.python_version), *BESIDES]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(arguments.folder)]
    command += ["--implementation", "cp", "--python-version", arguments.python_version]
    for platform in platforms(arguments.machine):
        command += ["--platform", platform]
    if subprocess.run([*command, *names], check=False).returncode:
        return 1
    wheels = sorted(arguments.folder.glob("*.whl"))
    total = sum(wheel.stat().st_size for wheel in wheels)
    sys.stdout.write(f"{len(wheels)} wheels, {total / 1e6:.1f} MB in all, in {arguments.folder}\n")
    return 0


def needed(python_version: str) -> list[str]:
    """Distributions that this package needs in that Python, and they in turn, without what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = [Requirement(line) for line in project["dependencies"]], set()
    environment = {**default_environment(), "python_version": python_version, "extra": ""}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found | THERE:
            found.add(name)
            waiting += _needs(name, requirement.extras, {str(key): str(each) for key, each in environment.items()})
    return sorted(found)


def _needs(name: str, extras: set[str], environment: dict[str, str]) -> Iterator[Requirement]:
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in ("", *extras)):
            yield requirement


def platforms(machine: str) -> list[str]:
    return [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="{}.{}".format(*sys.version_info), help="of that machine")
    parser.add_argument("--machine", default="x86_64", help="as its uname -m says")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
