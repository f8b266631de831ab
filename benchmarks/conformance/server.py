"""The server that clients are run against: the built-in model with a chat template, in float32, behind a key."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expertflow.errors import EngineError

from ..models import EXAMPLES

KEY = "conformance"
NAME = "built-in"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
"""The built-in model was not trained to converse; this is the least that a template can be."""
READY_S = 300.0


@dataclass(frozen=True)
class Server:
    """A running server: its address without `/v1`, and the folder of its model."""

    url: str
    model: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of the programs that ask it."""
        return {"SERVER_URL": self.url, "SERVER_MODEL": NAME, "SERVER_KEY": KEY}


@contextmanager
def running_server() -> Iterator[Server]:
    """Yield a server that is ready; stop it at the end. Raises EngineError if it does not start."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        model = Path(folder, "model")
        shutil.copytree(EXAMPLES / "model", model)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        # lm-eval sets a length, and transformers prefers a count of new tokens that the model itself names.
        (model / "generation_config.json").write_text('{"eos_token_id": 0}')
        port = free_port()
        words = ["serve", "--model", str(model), "--dtype", "float32", "--expert-memory", "100%"]
        words += ["--compute-threads", "1", "--default-max-tokens", "16"]  # enough for so small a model
        words += ["--http", str(port), "--api-key", KEY, "--served-model-name", NAME]
        with open(Path(folder, "log"), "w+") as log:
            command = [sys.executable, "-P", "-m", "expertflow", *words]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                url = f"http://127.0.0.1:{port}"
                _await_ready(f"{url}/ready", process, Path(log.name))
                yield Server(url, model)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise EngineError("did not start", "the server", log.read_text()[-2000:])
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EngineError("was not ready in time", "the server", os.fspath(log))
