"""`python -m expertflow.workers.checkpoint`: surveys one checkpoint and writes the result to a file.

Arguments: model, revision, dtype, file. Exit code 0: the file holds a `Survey`; 2: it holds an `ErrorFacts`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...errors import ExpertFlowError
from ...ipc.messages import ErrorFacts


def main() -> int:
    model, revision, dtype, target = sys.argv[1:5]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from .surveyor import survey_checkpoint

    try:
        answer: msgspec.Struct = survey_checkpoint(model, revision, dtype)
        code = 0
    except ExpertFlowError as error:
        answer, code = ErrorFacts(error.code, error.what, error.where, error.remedy), 2
    Path(target).write_bytes(msgspec.msgpack.encode(answer))
    return code


if __name__ == "__main__":
    sys.exit(main())
