"""An environment for the check without a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

from expertflow.benchmarks.gpu.offline import ROOT, make, needed, platforms
from packaging.utils import canonicalize_name


def test_all_is_carried_but_torch_and_each_version_is_one_that_was_tested() -> None:
    """Also what is needed only by what is needed; and nothing of torch's, which is gigabytes."""
    names, pins = set(needed("3.12")), (ROOT / "constraints.txt").read_text().split()
    assert {"transformers", "tokenizers", "pyzmq", "anyio", "pydantic-core"} <= names
    assert not names & {"torch", "numpy", "sympy", "pytest"}
    assert names <= {canonicalize_name(pin.partition("==")[0]) for pin in pins}
    assert "manylinux_2_28_aarch64" in platforms("aarch64")


def test_packages_of_another_environment_are_seen_behind_its_own(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("there", "both"):
        (theirs / f"{name}.py").write_text("where = 'theirs'\n")
    python = make(tmp_path / "environment", theirs)
    own = next((tmp_path / "environment").glob("lib/python*/site-packages"))
    (own / "both.py").write_text("where = 'own'\n")
    asked = [str(python), "-c", "import there, both; print(there.where, both.where)"]
    assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split() == ["theirs", "own"]
