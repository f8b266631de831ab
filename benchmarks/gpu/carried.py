"""Makes an environment for the check without a network: torch from the Python that runs this, all else that is missing
there from a folder of wheels (wheels.py).

    python3 benchmarks/gpu/carried.py WHEELS ENVIRONMENT

Nothing of this package is imported, since nothing is installed yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "torch-of-this-machine.pth"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("environment", type=Path)
    arguments = parser.parse_args()
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        sys.stderr.write(f"{sys.executable} has no torch: name the one that has it with make PYTHON=...\n")
        return 2
    python = make(arguments.environment, Path(spec.origin).parents[1])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    return subprocess.run(
        [*pip, "--find-links", str(arguments.wheels), "--editable", str(ROOT), "accelerate"], check=False
    ).returncode


def make(environment: Path, packages: Path) -> Path:
    """Its interpreter. It sees `packages` behind its own: those of an environment are not those of its Python, so
    system site packages would not do where torch is in an environment."""
    venv.EnvBuilder(clear=True, symlinks=True).create(environment)
    python = environment / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (own / HERE).write_text(f"{packages}\n")
    return python


if __name__ == "__main__":
    sys.exit(main())
