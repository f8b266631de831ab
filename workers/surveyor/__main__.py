"""`python -m expertflow.workers.surveyor`: writes the sizes of a checkpoint to a file, for `expertflow plan`.

Arguments: model, revision, dtype, generation settings, `PackingChoice` as JSON, kernels (empty: none), file. Exit code
0: the file holds a `Survey` or, without the weights, a `ModelSizes`; 2: it holds an `ErrorFacts`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...errors import ExpertFlowError
from ...ipc.messages import ErrorFacts
from ..packed.choice import PackingChoice
from .entry import plan_sizes


def main() -> int:
    model, revision, dtype, settings, choice, kernels, target = sys.argv[1:8]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        packing = msgspec.json.decode(choice, type=PackingChoice)
        answer, code = plan_sizes(model, revision, dtype, settings, packing, kernels), 0
    except ExpertFlowError as error:
        answer, code = ErrorFacts.of(error), 2
    Path(target).write_bytes(msgspec.msgpack.encode(answer))
    return code


if __name__ == "__main__":
    sys.exit(main())
