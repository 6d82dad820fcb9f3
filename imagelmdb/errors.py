"""Every error that a user can repair, every exit code, and the one place that prints them.

code  meaning
0     done
1     a bug, or another rank failed; or `imagelmdb verify` found damage
2     the user's mistake: the message has the value and the way out
3     training diverged; or a conversion is unfinished, because some files are not images
4     disk full
75    stopped by SIGTERM or SIGUSR1, and the checkpoint is written: run the same command with --resume auto
130   interrupted (Ctrl-C)
143   stopped by SIGTERM or SIGUSR1 without a checkpoint, such as --evaluate: run the same command again
128+N a rank was ended by signal N (scripts/torchrun.py)
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_DAMAGED = 1
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A wrong path, option or file. The message has the value and the way out."""

    exit_code = 2


class DiskFullError(UserError):
    """No room for what should be written. Everything before it is kept."""

    exit_code = 4


class StoreError(UserError):
    """A store that is missing, damaged, unfinished or of another kind. The message says what and where."""


class UnfinishedStoreError(StoreError):
    """A store whose conversion has not ended. The message says how to finish it."""


class BadImageError(UserError):
    """Bytes that are no sound image. Nothing replaces them with other pixels."""

    row = 0  # in the batch

    def at(self, row: int) -> BadImageError:
        self.row = row
        return self


class Diverged(Exception):
    """The loss or a weight is no longer finite."""

    exit_code = 3


class Stopped(Exception):
    """A signal asked the run to stop, and its checkpoint is written."""

    exit_code = 75  # EX_TEMPFAIL: a launcher may queue the run again


class StoppedUnsaved(Stopped):
    """A signal asked the run to stop, and there is no checkpoint to go on from."""

    exit_code = 143  # 128 + SIGTERM. A launcher that queued it again would repeat everything


def run_command(command: Callable[[], int]) -> int:
    """Run a command line's main. A user's mistake becomes one line and an exit code, no traceback."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        return complain(as_user_error(error))
    except UnicodeEncodeError as error:
        return complain(UserError(f"the name {error.object!r} is not valid text"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED


def as_user_error(error: UserError | OSError) -> UserError:
    """An error of the system as a user's mistake: the file, and what the system says about it."""
    if isinstance(error, UserError):
        return error
    where = f"{error.filename}: " if error.filename else ""
    kind = DiskFullError if error.errno in DISK_FULL else UserError
    return kind(f"{where}{error.strerror or error}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text. Those of torch and of YAML go on for many lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def complain(error: UserError | Diverged | Stopped) -> int:
    """Print the error as one line; return its exit code."""
    prefix = "error: " if isinstance(error, UserError) else ""
    if sys.stderr is not None:
        print(f"{prefix}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code
