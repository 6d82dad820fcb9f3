"""Errors that are the user's to mend, and how a command line tells them."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A wrong path, option or file; the message holds the value and the way out."""

    exit_code = 2


class DiskFullError(UserError):
    """No room for what was to be written; all before it is kept."""

    exit_code = 4


class Parser(argparse.ArgumentParser):
    """argparse, whose complaint is one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def run_command(command: Callable[[], int]) -> int:
    """Run a command line's main: the user's mistakes become one line and an exit code, no traceback."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        exit_code = DiskFullError.exit_code if error.errno in DISK_FULL else UserError.exit_code
        return _complain(f"{where}{error.strerror or error}", exit_code)
    except UnicodeEncodeError as error:
        return _complain(f"the name {error.object!r} is not valid text", UserError.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(message: str, exit_code: int) -> int:
    if sys.stderr is not None:
        prefix = "" if exit_code == 130 else "error: "
        print(f"{prefix}{' '.join(message.split())}", file=sys.stderr)
    return exit_code
