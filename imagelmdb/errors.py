"""Errors that are the user's to mend: the command lines print them as one line and exit with code 2."""


class UserError(Exception):
    """A wrong path, option or file; the message holds the value and the way out."""
