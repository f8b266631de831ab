"""A client that is checked, and what is compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environments import Environment, prepare
from .server import Server

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Check:
    """Whether something holds, and what was seen."""

    what: str
    holds: bool
    seen: str = ""


@dataclass(frozen=True)
class Client:
    """A client, what is installed for it, and its checks. `version_of`: the package whose version is shown."""

    name: str
    run: Callable[[Environment, Server, dict[str, Any]], list[Check]]
    requirements: list[str] = field(default_factory=list)
    version_of: str = ""
    with_ours: bool = False
    by_default: bool = True

    def check(self, server: Server, expected: dict[str, Any]) -> tuple[str, list[Check]]:
        """Return the version of the client and its checks; `expected` has the official client's answers."""
        environment = prepare(self.name, self.requirements, self.with_ours)
        return version_of(environment, self.version_of or self.name), self.run(environment, server, expected)


def version_of(environment: Environment, package: str) -> str:
    """Return the version of an installed package, or of curl."""
    if package == "curl":
        return subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return environment.run(["python", "-c", code]).stdout.strip()


def run_program(environment: Environment, server: Server, name: str) -> list[dict[str, Any]]:
    """Run one of the programs in an environment and return the answers that it writes."""
    done = environment.run(["python", str(PROGRAMS / f"{name}.py")], variables=server.variables)
    if done.returncode:
        return [{"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"}]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def same(got: dict[str, Any], expected: dict[str, Any], **names: str) -> list[Check]:
    """Compare answers: name of the client's answer -> name of the official client's."""
    pairs = [(name, got.get(name), expected[of]) for name, of in names.items()]
    checks = [Check(f"{name}: as by openai", value == wanted, repr(value)) for name, value, wanted in pairs]
    return [Check("runs", "error" not in got, str(got.get("error", ""))), *checks]
