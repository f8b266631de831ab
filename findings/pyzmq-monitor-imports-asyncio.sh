#!/usr/bin/env bash
# Package:   pyzmq 27.3.0
# Expected:  zmq.utils.monitor, which parses the messages of a socket monitor, adds next to nothing to `import zmq`.
# Happens:   the module imports zmq.asyncio, and so asyncio with more than fifty other modules, for programs without an
#            event loop too. Start-up takes longer and the process is larger.
# What to do: where start-up counts, parse the first frame oneself: event, value = struct.unpack("=hi", frame).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q pyzmq==27.3.0 || exit 2
cd "$work"
"$venv/bin/python" - <<'PYTHON'
import subprocess
import sys
import time

import zmq

PRINT = "import sys; print(len(sys.modules), 'asyncio' in sys.modules)"


def loaded(statement):
    """Return the number of modules in a fresh interpreter after `statement`, whether asyncio is one, and the ms."""
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", f"{statement}; {PRINT}"], check=True, capture_output=True, text=True)
    count, has_asyncio = out.stdout.split()
    return int(count), has_asyncio == "True", round((time.perf_counter() - start) * 1000)


loaded("import zmq, zmq.utils.monitor")  # once for the file cache
alone, monitor = loaded("import zmq"), loaded("import zmq.utils.monitor")
print("pyzmq", zmq.__version__)
print("import zmq:               {} modules, asyncio {}, {} ms in all".format(*alone))
print("import zmq.utils.monitor: {} modules, asyncio {}, {} ms in all".format(*monitor))
raise SystemExit(0 if not alone[1] and monitor[1] and monitor[0] - alone[0] > 50 else 1)
PYTHON
