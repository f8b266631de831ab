"""`expertflow quantize`: what it says of the built-in model, and texts that cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.commands.quantize import Quantize

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "model"


def test_a_copy_is_written_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is read by people: sizes, the error of each layer, and what the copy costs."""
    text = ROOT / "examples" / "held_out.txt"
    Quantize(source=MODEL, destination=tmp_path / "small", group="channel", text=text, tokens=34).run()
    said = capsys.readouterr().out
    assert "5.5 MB instead of 15.7 MB" in said and "by layer: 0: 9.9" in said
    assert "33 tokens" in said and "divergence" in said


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_two_tokens_is_refused_first(tmp_path: Path, text: str) -> None:
    """Not after hours of quantising."""
    file = tmp_path / "text.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match="too short to compare"):
        Quantize(source=MODEL, destination=tmp_path / "small", text=file).run()
    assert not (tmp_path / "small").exists()
