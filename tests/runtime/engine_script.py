"""A program that starts an engine of fake stages and stays: to be killed by tests."""

from __future__ import annotations

import sys
import time

from expertflow.tests.runtime.fakes import fake_engine

if __name__ == "__main__":
    with fake_engine(("compute", "loader"), {"compute": sys.argv[1]}, spare_compute=sys.argv[1] == "spare") as engine:
        sys.stdout.write(f"{engine.address}\n")
        sys.stdout.flush()
        time.sleep(60)
