"""Carry what `make gpu-check` needs to a machine with a CUDA torch and no network.

    python -m expertflow.benchmarks.gpu.offline download FOLDER --python-version 3.12     (make gpu-wheels OUT=FOLDER)
    python3 benchmarks/gpu/offline.py install FOLDER ENVIRONMENT                          (make gpu-check WHEELS=FOLDER)

`download` fetches all wheels besides torch and numpy: what depends on what is read from this environment, versions are
those of constraints.txt. `install` makes an environment there: torch from the Python that runs it, all else that is
missing from the wheels. It imports nothing of this package, since nothing is installed yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TORCH_HERE = "torch-of-this-machine.pth"
THERE = {"torch", "numpy"}
"""On the machine with the GPU, and with torch what it alone needs."""
GLIBC = (17, 24, 27, 28, 31, 34)
"""Minor versions: pip takes a tag literally."""


def main() -> int:
    arguments = parse_arguments()
    if arguments.command == "install":
        return install(arguments.wheels, arguments.environment)
    return download(arguments.folder, arguments.python_version, arguments.machine)


def download(folder: Path, python_version: str, machine: str) -> int:
    """Download the wheels; return pip's exit code."""
    from ..contenders.accelerate_offload import PACKAGE

    besides = ("setuptools", PACKAGE)  # what installs this package, and a contender, whose needs are among ours
    names = [*needed(python_version), *besides]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", python_version]
    for platform in platforms(machine):
        command += ["--platform", platform]
    if subprocess.run([*command, *names], check=False).returncode:
        return 1
    wheels = sorted(folder.glob("*.whl"))
    total = sum(wheel.stat().st_size for wheel in wheels)
    sys.stdout.write(f"{len(wheels)} wheels, {total / 1e6:.1f} MB in all, in {folder}\n")
    return 0


def needed(python_version: str) -> list[str]:
    """Return the distributions that this package needs in that Python, and they in turn, without what is there."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

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
    from packaging.requirements import Requirement

    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in ("", *extras)):
            yield requirement


def platforms(machine: str) -> list[str]:
    """Return the platform tags of a machine with Linux, oldest first."""
    return [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC)]


def install(wheels: Path, environment: Path) -> int:
    """Make the environment and install this package in it; return pip's exit code, or 2 without a torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        sys.stderr.write(f"{sys.executable} has no torch: name the one that has it with make PYTHON=...\n")
        return 2
    python = make(environment, Path(spec.origin).parents[1])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    return subprocess.run(
        [*pip, "--find-links", str(wheels), "--editable", str(ROOT), "accelerate"], check=False
    ).returncode


def make(environment: Path, packages: Path) -> Path:
    """Make an environment that sees `packages` behind its own, and return its interpreter.

    Those of an environment are not those of its Python, so system site packages would not do.
    """
    venv.EnvBuilder(clear=True, symlinks=True).create(environment)
    python = environment / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (own / TORCH_HERE).write_text(f"{packages}\n")
    return python


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch the wheels")
    command.add_argument("folder", type=Path)
    command.add_argument("--python-version", default="{}.{}".format(*sys.version_info), help="of that machine")
    command.add_argument("--machine", default="x86_64", help="as its uname -m says")
    command = commands.add_parser("install", help="make an environment from them")
    command.add_argument("wheels", type=Path)
    command.add_argument("environment", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
