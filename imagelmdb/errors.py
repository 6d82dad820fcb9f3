"""Every error that a user can repair, every exit code, and the one place that prints them.

code  meaning
0     done
1     a bug, or another rank failed, or a loader worker died or hangs; or `imagelmdb verify` found damage
2     the user's mistake: the message has the value and the way out
3     training diverged; or a conversion is unfinished, because some files are not images
4     disk full
75    stopped by a signal, and the checkpoint is written: run the same command with --resume auto
130   interrupted (Ctrl-C), without a checkpoint
143   stopped by a signal without a checkpoint, as in --evaluate or before training began: run it again
128+N a rank was ended by signal N (scripts/torchrun.py)
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import zlib
from collections.abc import Callable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What Python and the libraries raise, besides OSError, where bytes or numbers from outside are not what they
# should be. Whoever reads a foreign file catches these, and makes a UserError or a BadImageError of them.
DAMAGE = (
    ArithmeticError,  # among them OverflowError: a number that is too large for where it goes
    EOFError,
    LookupError,
    MemoryError,  # a small file may ask for all memory
    NotImplementedError,
    RecursionError,
    SyntaxError,  # Pillow's
    TypeError,
    ValueError,  # among them UnicodeError
    struct.error,
    zlib.error,
)
_LONGEST_DETAIL = 300  # characters of a library's message in ours: some repeat all of their input

EXIT_DAMAGED = 1
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A wrong path, option or file. The message has the value and the way out."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a name from outside


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


class LoaderError(UserError):
    """A loader worker died or hangs, or an epoch was read on after a later one had begun."""

    exit_code = 1


class Diverged(Exception):
    """The loss or a weight is no longer finite."""

    exit_code = 3


class Stopped(Exception):
    """A signal asked the run to stop. Its checkpoint is written."""

    exit_code = 75  # EX_TEMPFAIL: a launcher may queue the run again


class StoppedUnsaved(Stopped):
    """A signal asked the run to stop, and there is no checkpoint to go on from."""

    exit_code = 143  # 128 + SIGTERM. A launcher that queued it again would repeat everything


class StoppedEarly(BaseException):
    """A signal came before training began. It is no Exception: while torch is imported, it catches these."""

    exit_code = 143


def run_command(command: Callable[[], int]) -> int:
    """Run a command line's main. A user's mistake becomes one line and an exit code, no traceback."""
    if hasattr(sys.stdout, "reconfigure"):  # escape what the terminal's encoding lacks, such as \xe4 in ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = command()
        except SystemExit:  # --help and --version
            _flush()
            raise
        _flush()
        return code
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        return 0
    except (UserError, OSError, MemoryError) as error:
        return complain(as_user_error(error))
    except UnicodeEncodeError as error:
        return complain(UserError(_explain_encoding(error)))
    except StoppedEarly as end:
        return complain(end)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    finally:
        try:
            _flush()
        except OSError:  # nobody takes the rest, so Python must not try again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _explain_encoding(error: UnicodeEncodeError) -> str:
    if error.encoding.startswith("utf"):
        return f"the name {error.object!r} is not valid text"
    return f"the name {error.object!r} cannot be written in {error.encoding}: set LC_ALL=C.UTF-8"


def as_user_error(error: UserError | OSError | MemoryError) -> UserError:
    """An error of the system as a user's mistake: the file, and what the system says about it."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        return UserError("not enough memory: use fewer workers, or raise the limit (`ulimit -v`)")
    where = f"{error.filename}: " if error.filename else ""
    kind = DiskFullError if error.errno in DISK_FULL else UserError
    return kind(f"{where}{error.strerror or error}")


def printable(text: object) -> str:
    """A text from outside, safe for a terminal: "\\x1b[31m" for an escape sequence that would turn it red.

    Names of files and of classes may have any characters. Those that show nothing but do something are
    escaped: control characters, line ends, changes of the writing direction.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(error: BaseException) -> str:
    """What a library raised, as one line: "OverflowError: Python int too large to convert to C int"."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text. Those of torch and of YAML go on for many lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def complain(error: UserError | Diverged | Stopped | StoppedEarly) -> int:
    """Print the error as one line; return its exit code."""
    prefix = "error: " if isinstance(error, UserError) else ""
    if sys.stderr is not None:
        print(prefix + printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
    return error.exit_code
