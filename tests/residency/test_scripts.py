"""The readable conversations of tests/data/scripts happen word for word between the real cores.

`pytest tests/residency/test_scripts.py --rewrite-scripts` writes what the cores answer now; look at the diff.
"""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

import expertflow
import pytest
from expertflow.tests.residency.scripts import Script
from expertflow.tests.residency.world import Broken

FOLDER = Path(expertflow.__file__).parent / "tests" / "data" / "scripts"
HEADER = "given 2 slots, 1 layers, 2 experts\ntop-k 1\nstep 0 uses 0/1\n"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.txt")), ids=lambda file: file.stem)
def test_the_cores_answer_as_the_script_says(file: Path, request: pytest.FixtureRequest) -> None:
    """And the work of the script can be finished from where it ends, with every slot accounted for."""
    script = Script(file.read_text())
    played = script.play()
    if request.config.getoption("--rewrite-scripts"):
        file.write_text(played)
    difference = unified_diff(file.read_text().splitlines(), played.splitlines(), file.name, "the cores", lineterm="")
    if lines := list(difference):
        pytest.fail("\n".join(lines), pytrace=False)
    script.world.settle()


@pytest.mark.parametrize("line", ["layer ends", "loader receives Miss", "the layer starts", "expert 0 is computed"])
def test_an_event_that_is_not_possible_is_named(line: str) -> None:
    with pytest.raises(Broken):
        Script(f"{HEADER}{line}\n").play()
