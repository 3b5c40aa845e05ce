"""How a command ends: bad input with one line and exit code 2, a bug with one line and code 1."""

from __future__ import annotations

import argparse
import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import warnings

from animate_jax.errors import Terminated, UserError, hand_notes_to

MEMORY = (
    "there is too little memory; ask for less: of animate a smaller --width, --height or --window,"
    " of train a smaller data.batch_size, a larger accumulate, or remat=full"
)
EXTRAS = {"grain": "train", "tensorflow_datasets": "train", "gcsfs": "gcs"}  # who asks for which


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults that are worth telling."""

    def _get_help_string(self, action):
        if action.default in (None, False, [], argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def run(options: argparse.Namespace, program: str) -> int:
    """Calls `options.run(options)` and returns the exit code; `options.debug` shows tracebacks.

    One of several processes that fails ends here: by itself JAX would wait for the others at the
    end, five minutes in which they wait for it, and then abort with another code.
    """
    code = _run(options, program)
    if code not in (0, 143) and _is_one_of_several():
        for child in multiprocessing.active_children():
            child.terminate()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
    return code


def _is_one_of_several():
    jax = sys.modules.get("jax")  # not every command needs it
    return jax is not None and jax.distributed.is_initialized()


def _run(options, program):

    def say(line):
        print(f"{program}: {line}", file=sys.stderr)

    def failed(error, line, code):
        if options.debug:
            raise error
        say(line)
        return code

    try:
        with warnings.catch_warnings(), _cleaning_up():
            hand_notes_to(lambda note: say(f"note: {note}"))
            options.run(options)
    except UserError as error:
        return failed(error, f"error: {error}", error.code)
    except ImportError as error:
        for package, extra in EXTRAS.items():
            if error.name == package or f"install {package}" in str(error):
                line = f"error: {package} is needed; install: pip install 'animate-jax[{extra}]'"
                return failed(error, line, 2)
        return failed(error, _unexpected(error), 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stdout = None  # or Python complains once more when it ends
        return 141  # what a shell says of SIGPIPE; the work may not be done
    except Terminated as end:
        say(str(end))
        return end.code
    except _Told:
        say("told to end")
        return 143
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        if isinstance(error, MemoryError) or _of_device_memory(error):
            reason = _cut(error)
            return failed(error, f"error: {MEMORY}" + f" ({reason})" * bool(reason), 2)
        if _of_full_disk(error):
            line = f"error: the disk is full; make room, or write elsewhere ({_cut(error)})"
            return failed(error, line, 2)
        return failed(error, _unexpected(error), 1)
    return 0


class _Told(KeyboardInterrupt):
    """SIGTERM, which ends what Ctrl-C ends."""


@contextlib.contextmanager
def _cleaning_up():
    """SIGTERM raises, so that half-written files go; a second one ends the process at once."""
    usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number, frame):
        signal.signal(number, signal.SIG_DFL)
        raise _Told

    signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _of_full_disk(error):
    """Whether it, or what it came of, says so; TensorStore and PyAV have errors of their own."""
    while error is not None:
        known = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if known or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cut(error):
    return _one_line(error)[:200]


def _of_device_memory(error):
    # By its name: not every command needs jax.
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


def _unexpected(error):
    return f"unexpected {type(error).__name__}: {_one_line(error)} (--debug shows where)"


def _one_line(error):
    return " ".join(str(error).split())
