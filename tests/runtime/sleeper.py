"""A module that sleeps: to be run under guard."""

from __future__ import annotations

import sys
import time

if __name__ == "__main__":
    sys.stdout.write(f"sleeping {sys.argv[1:]}\n")
    sys.stdout.flush()
    time.sleep(60)
