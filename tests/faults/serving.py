"""Programs that are killed by tests: a client with a long request."""

from __future__ import annotations

import sys

from expertflow import Client

if __name__ == "__main__":
    with Client(sys.argv[1]) as client:
        batch = client.submit([[5, 9, 11]] * 4, max_new_tokens=int(sys.argv[2]), eos_ids=[])
        for _ in batch:
            sys.stdout.write("token\n")
            sys.stdout.flush()
