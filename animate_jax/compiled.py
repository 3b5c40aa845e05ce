"""Compiled programs kept in a directory, by JAX's compilation cache.

`animate-jax plan --serialize DIR` fills it for a TPU that is not there; `train` and `animate` with
`--compiled DIR` start without compiling where the program, the devices, the versions of JAX and
libtpu and the compiler's options are the same, and otherwise compile and add to it.
"""

from __future__ import annotations

import os

import jax
from jax.experimental.compilation_cache import compilation_cache

from animate_jax.files import make_directory

LEAST_SECONDS = 1.0  # what compiles faster is not kept


def keep_compiled(directory: str | os.PathLike | None) -> None:
    """Keeps the programs of this process in `directory`, local or `gs://`; None changes nothing.

    Programs are as trustworthy as the directory: what lies there is run.
    """
    if directory is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(make_directory(directory)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    compilation_cache.reset_cache()  # else a directory is not looked at once something was compiled
