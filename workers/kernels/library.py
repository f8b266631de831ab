"""The file of the C kernels and what it offers this CPU: found beside this module, opened by ctypes, without torch."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.machinery
from pathlib import Path

from .cpu import capability_limit

LIBRARY = "_native"
NOT_BUILT = "the library was not built (no C compiler when the package was installed)"
OTHER_VERSION = "the library is that of another version; build it again (pip install -e . in a clone, or make demo)"
LAYOUT = (152 << 16) | 104
"""Bytes of `struct job` and `struct packed` (native/kernels.h): a library with others would read beyond them."""
NO_VARIANT = "the CPU, or ATEN_CPU_CAPABILITY, allows none of the instruction sets that have kernels (AVX2 and up)"


def library_file() -> Path | None:
    """Return the file of the library, None if it was not built."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = [Path(__file__).with_name(LIBRARY + suffix) for suffix in suffixes]
    return next((file for file in files if file.is_file()), None)


def library_digest() -> str:
    """Return a digest of the library, which changes with every build that differs; empty if there is none."""
    file = library_file()
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file else ""


@functools.cache
def open_library() -> ctypes.CDLL | None:
    """Return the library, None if there is none for this version (`absence`)."""
    if absence():
        return None
    library = ctypes.CDLL(str(library_file()))
    library.expertflow_variant.restype = ctypes.c_char_p
    return library


@functools.cache
def absence() -> str:
    """Return why there is no library for this version; empty if there is one."""
    file = library_file()
    if file is None:
        return NOT_BUILT
    library = ctypes.CDLL(str(file))
    is_ours = all(hasattr(library, name) for name in ("expertflow_layout", "expertflow_norm"))
    return "" if is_ours and library.expertflow_layout() == LAYOUT else OTHER_VERSION


@functools.cache
def usable_variants() -> dict[str, int]:
    """Return name -> number of the variants that this CPU runs and ATEN_CPU_CAPABILITY allows, best first."""
    library, variants = open_library(), {}
    while library is not None and (name := library.expertflow_variant(len(variants))) is not None:
        variants[name.decode()] = len(variants)
    limit = capability_limit()
    return {name: i for name, i in variants.items() if name in limit and library and library.expertflow_usable(i)}
