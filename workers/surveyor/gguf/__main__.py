"""`python -m expertflow.workers.surveyor.gguf FOLDER FILE…`: describes the model in GGUF files in an empty folder.

Exit code 0: the folder is complete; 2: its `error.msgpack` says why there is none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ....errors import ExpertFlowError
from ....ipc.messages import ErrorFacts
from ...checkpoint.gguf.description import ERROR, REFUSED
from .describing import write_description


def main() -> int:
    folder, *files = map(Path, sys.argv[1:])
    try:
        write_description(folder, files)
    except ExpertFlowError as error:
        (folder / ERROR).write_bytes(msgspec.msgpack.encode(ErrorFacts.of(error)))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
