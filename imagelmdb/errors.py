"""Errors that are the user's to mend, and how a command line tells them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A wrong path, option or file; the message holds the value and the way out."""

    exit_code = 2


def run_command(command: Callable[[], int]) -> int:
    """Run a command line's main: the user's mistakes become one line and an exit code, no traceback."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
