"""What speaks to users: bad input ends a command, a note does not."""

import errno
import os
import re
import warnings
from collections.abc import Callable

# What says nothing about a file: too many are open, the disk or the network is gone, ...
OF_THE_MACHINE = {
    getattr(errno, name)
    for name in "EMFILE ENFILE EIO ENOMEM ENOSPC ESTALE ETIMEDOUT ENOTCONN EINTR EAGAIN".split()
    if hasattr(errno, name)
}
_NO_ACCESS = OF_THE_MACHINE | {errno.EACCES, errno.EPERM}
# The same in words of libraries that give no number, and what storage says over the network.
_OF_STORAGE = "UNAVAILABLE DEADLINE_EXCEEDED PERMISSION_DENIED UNAUTHENTICATED RESOURCE_EXHAUSTED"
_SAID = re.compile(
    "|".join(re.escape(os.strerror(number)) for number in sorted(_NO_ACCESS))
    + f"|({'|'.join(_OF_STORAGE.split())}|ABORTED):"
)


class UserError(Exception):
    """What a user can mend, mostly bad input.

    The message is one line that says what is wrong and what to do; the command line prints it and
    exits with `code`.
    """

    code = 2


class UnreadableError(UserError):
    """A picture or video that does not decode, or is not there; trying again does not help."""


class UnavailableError(UserError):
    """A file that cannot be read now, by no fault of its own; trying again may help."""

    code = 1


def require_access(path, error: BaseException) -> None:
    """Raises UnavailableError where `error` came from the machine, the network or missing rights,
    and so says nothing about what lies at `path`."""
    number = getattr(error, "errno", None)
    if (
        number in _NO_ACCESS
        or isinstance(error, ConnectionError | TimeoutError)
        or _SAID.search(str(error))
    ):
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UnavailableError(
            f"{path}: cannot be read now ({reason}); see that the place and your rights to it are"
            " there, and try again"
        ) from error


class PartnerLost(UserError):
    """Another process of the run is gone; starting all of them again helps."""

    code = 75  # EX_TEMPFAIL of sysexits.h


class UserNote(UserWarning):
    """Something done differently from what was asked, with the reason, in one line."""


def hand_notes_to(take: Callable[[str], object]) -> None:
    """Until `warnings.catch_warnings()` around it ends, notes go to `take`, other warnings where
    they usually go."""
    usual = warnings.showwarning

    def show(message, category, *place, **options):
        if issubclass(category, UserNote):
            take(str(message))
        else:
            usual(message, category, *place, **options)

    warnings.showwarning = show


class Terminated(Exception):
    """The process was told to end and has kept what the same command needs to go on.

    `code` is what a shell says of the signal that told it: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, message: str, code: int = 143):
        super().__init__(message)
        self.code = code
