"""docs/traces.md names every field that a file has, and none that it has not; its example reads a file."""

from __future__ import annotations

import re
from pathlib import Path

import expertflow
import numpy as np
import pytest
from expertflow.tests.traces.streams import route, step, write
from expertflow.workers.traces.records import TracedPlan, TracedStep, TraceHeader

TEXT = (Path(expertflow.__file__).parent / "docs" / "traces.md").read_text()


@pytest.mark.parametrize("kind", [TraceHeader, TracedStep, TracedPlan])
def test_every_field_is_explained(kind: type[TraceHeader | TracedStep | TracedPlan]) -> None:
    table = TEXT.split(f"`{kind.__name__}`, ")[1].split("\n\n")[1]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(kind.__struct_fields__)


def test_the_example_reads_a_file(tmp_path: Path) -> None:
    write(tmp_path, step(0, [(0, 0), (0, 1)]))
    code = TEXT.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path))
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert np.array_equal(names["experts"], [route(0, 0), route(0, 1)])
