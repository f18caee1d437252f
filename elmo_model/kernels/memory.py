"""Let a training process keep the memory that it frees. Knows the C library only.

Every step needs the same buffers of tens of megabytes. The C library returns such buffers to the
system when they are freed, and fetching them again, page by page and filled with zeros, took 15 %
of a step. What is set here holds for the whole process: it keeps its peak until it ends, as torch
does with a GPU's memory.
"""

from __future__ import annotations

import ctypes
import functools

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Do it once; False where the C library has no such setting."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    set_option.argtypes = [ctypes.c_int, ctypes.c_int]
    set_option.restype = ctypes.c_int
    return bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, _LARGEST_INT))
