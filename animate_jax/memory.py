"""Memory that a program frees on the CPU, kept for its next step."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os

# What glibc's mallopt is told; the numbers are malloc.h's.
_KEEP = {
    "M_ARENA_MAX": (-8, 1),  # all threads share one heap,
    "M_MMAP_MAX": (-4, 0),  # large buffers are part of it,
    "M_TRIM_THRESHOLD": (-1, -1),  # it never shrinks,
    "M_TOP_PAD": (-2, 2**26),  # and grows by 64 MiB at least.
}


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, where no accelerator can be and malloc is glibc's.

    XLA takes a step's buffers from malloc, which returns large ones to the system when they are
    freed, and has every page brought in anew by the next step. In exchange the process stays as
    large as it was at its largest. To be called before there are other threads, whose heaps stay
    as they are; so before JAX is imported.
    """
    if _may_have_accelerator():
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another system, or another malloc
    for parameter, value in _KEEP.values():
        mallopt(parameter, value)


def _may_have_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
