"""What speaks to users: bad input ends a command, a note does not."""

import warnings
from collections.abc import Callable


class UserError(Exception):
    """What a user can mend, mostly bad input.

    The message is one line that says what is wrong and what to do; the command line prints it and
    exits with `code`.
    """

    code = 2


class UnreadableError(UserError):
    """A picture or video that does not decode, or is not there; trying again does not help."""


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
