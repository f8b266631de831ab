"""Importing what is large."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """While modules are imported nothing is garbage; collecting took a fifth of importing torch and transformers.

    They stay as long as the process does, so the collector never looks at them again either.
    """
    gc.collect()  # what is garbage before would stay too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
