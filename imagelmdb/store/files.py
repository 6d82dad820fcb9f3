"""Image files as bytes.

data = read_file(Path("train/n01440764/n01440764_10026.JPEG"))
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def read_file(path: Path) -> bytes:
    """OSError where it is no regular file: opening a FIFO waits for its writer, a device may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()
