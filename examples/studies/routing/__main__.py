"""`python -m expertflow.examples.studies.routing`: the study, with its rows as JSON on stdout."""

from __future__ import annotations

import argparse
import json
import sys

from expertflow.errors import ExpertFlowError

from .run import add_options, run


def main() -> int:
    """Run the study; return 0, or 2 after an error that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m expertflow.examples.studies.routing", description=__doc__)
    add_options(parser)
    try:
        result = run(parser.parse_args())
    except ExpertFlowError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
