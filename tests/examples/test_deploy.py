"""The files for a service and a container: their tools accept them, and what they name is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import expertflow
import pytest
from expertflow.runtime.command_line.registry import parse

ROOT = Path(expertflow.__file__).parent
DEPLOY = ROOT / "examples" / "deploy"
UNIT, IMAGE = DEPLOY / "expertflow.service", DEPLOY / "Containerfile"


def lines_of(section: str) -> list[tuple[str, str]]:
    """Key and value of every line of a section of the unit."""
    text = UNIT.read_text().partition(f"[{section}]")[2].partition("\n[")[0]
    return [(key, value) for key, _, value in (line.partition("=") for line in text.splitlines()) if value]


def test_the_unit_starts_a_service_that_says_when_it_is_ready() -> None:
    service = dict(lines_of("Service"))
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "expertflow"
    parse(words)
    assert service["Type"] == "notify" and service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > 10, "an orderly end takes ten seconds"
    assert dict(lines_of("Install")) == {"WantedBy": "multi-user.target"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """It warns of misspelt lines only in a log that nobody reads. The program must be there, so another stands in."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/expertflow/bin/expertflow", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction of the image; continued lines are one."""
    text = re.sub(r"(?m)^\s*#.*\n", "", IMAGE.read_text()).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines()) if name]


def test_the_image_copies_what_is_there_and_all_that_the_package_needs() -> None:
    """A new folder of the package would be missing in the image alone."""
    sources = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    copied = [path for paths in sources for path in paths]
    assert all((ROOT / path).exists() for path in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.split(".")[1] for name in packages if "." in name} <= set(copied)
    assert {file.name for file in ROOT.glob("*.py")} <= set(copied)


def test_the_image_runs_without_privileges_and_with_the_extras() -> None:
    listed = instructions()
    names = [name for name, _ in listed]
    last = len(names) - 1 - names[::-1].index("FROM")
    assert [rest for name, rest in listed[last:] if name == "USER"] == ["10001"]
    assert all(":" in rest and ":latest" not in rest for name, rest in listed if name == "FROM")
    installed = next(rest for name, rest in listed if name == "RUN" and ".[" in rest)
    extras = set(re.findall(r"\.\[(.*?)\]", installed)[0].split(","))
    assert extras == {"serve", "structured", "vision"}
    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_what_the_image_runs_is_a_command() -> None:
    arguments = dict(instructions())
    words = [*re.findall(r'"(.*?)"', arguments["ENTRYPOINT"]), *re.findall(r'"(.*?)"', arguments["CMD"])]
    assert words[0] == "expertflow"
    parse(words[1:])
