"""Run clients that others have written against the server, and write what came of it.

python -m expertflow.benchmarks.conformance                     every client but the load test
python -m expertflow.benchmarks.conformance --only llm curl     some of them
python -m expertflow.benchmarks.conformance --all --out docs/results/conformance.md

Each client is installed once into an environment of its own in the user's cache. Texts are compared with those that the
official client gets, scores with those of transformers. Exit code 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..contenders.base import Missing
from .client import Check, Client, run_program
from .clients import CLIENTS
from .environments import prepare
from .page import Outcome, write_page
from .server import Server, running_server


def main() -> int:
    arguments = read_arguments()
    clients = [client for client in CLIENTS if chosen(client, arguments)]
    with running_server() as server:
        reference = next(client for client in CLIENTS if client.name == "openai")
        (expected,) = run_program(prepare(reference.name, reference.requirements), server, "openai_client")
        outcomes = [check(client, server, expected) for client in clients]
    if arguments.out:
        write_page(arguments.out, outcomes)
    return int(not all(check.holds for outcome in outcomes for check in outcome.checks))


def chosen(client: Client, arguments: argparse.Namespace) -> bool:
    """Return whether a client is to be run."""
    if arguments.only:
        return client.name in arguments.only
    return arguments.all or client.by_default


def check(client: Client, server: Server, expected: dict[str, object]) -> Outcome:
    """Run a client, and say on stderr what holds."""
    try:
        version, checks = client.check(server, expected)
    except Missing as error:
        version, checks = "", [Check("is installed", False, str(error))]
    for each in checks:
        said = f"ok: {each.what}" if each.holds else f"FAILS: {each.what}: {each.seen}"
        sys.stderr.write(f"{client.name}: {said}\n")
    return Outcome(client.name, version, checks)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[client.name for client in CLIENTS], default=[])
    parser.add_argument("--all", action="store_true", help="the load test, too: several GB are installed for it")
    parser.add_argument("--out", type=Path, help="write the page of results to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
