"""What imports leave to the garbage collector."""

from __future__ import annotations

import gc

import pytest
from expertflow.workers.surveyor.entry import paused_garbage_collection


def test_what_was_imported_is_never_collected_again_and_collecting_goes_on():
    before = gc.get_freeze_count()
    try:
        with paused_garbage_collection():
            assert not gc.isenabled()
            kept = [[] for _ in range(10_000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() - before >= len(kept)
    finally:
        gc.unfreeze()


def test_a_module_that_is_missing_leaves_the_collector_on():
    try:
        with pytest.raises(ModuleNotFoundError), paused_garbage_collection():
            import expertflow.no_such_module  # noqa: F401 # pyright: ignore[reportMissingImports]
        assert gc.isenabled()
    finally:
        gc.unfreeze()
