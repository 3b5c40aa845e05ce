"""The exception that speaks to users: the command line prints it and exits with code 2."""


class UserError(Exception):
    """Bad input; the message is one line that says what is wrong and what to do."""
