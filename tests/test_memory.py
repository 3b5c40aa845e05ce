"""Freed memory is kept: what a step uses is not brought in anew by the next."""

import subprocess
import sys

import pytest

STEPS, PAGES = 10, 2**15  # 128 MiB, which every step takes and gives back

PROGRAM = f"""
import ctypes, resource, threading
from animate_jax import memory
memory._may_have_accelerator = lambda: ACCELERATOR
memory.keep_freed_memory()
import jax
jax.default_backend()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.argtypes = [ctypes.c_void_p]
def step():
    buffer = malloc({PAGES} * 4096)
    ctypes.memset(buffer, 1, {PAGES} * 4096)
    free(buffer)
def work():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({STEPS}):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_pages_are_brought_in_once():
    def faults(accelerator):
        program = [sys.executable, "-c", PROGRAM.replace("ACCELERATOR", str(accelerator))]
        return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    # At least once for a huge page, where the system gives these unasked.
    assert faults(accelerator=True) >= STEPS * PAGES / 512
    assert faults(accelerator=False) < STEPS
