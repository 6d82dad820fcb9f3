"""Texts: a list of strings in one buffer, so that the names of 1.28 M images take 50 MB and not 200.

For "cat" and "horse" the buffer is b"cathorse" and the ends are [3, 8]: string 1 is buffer[3:8].
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class Texts:
    """A list of str or bytes that only makes an object for a string when somebody asks for it."""

    def __init__(self, texts: Iterable[str | bytes] = ()):
        self.buffer: bytearray | bytes | np.ndarray = bytearray()
        self.ends: Sequence[int] | np.ndarray = array("q")
        for text in texts:
            self.append(text)

    @classmethod
    def view(cls, buffer: bytes | np.ndarray, ends: np.ndarray) -> Texts:
        """A buffer and ends that exist already, for example in a mapped file. Nothing is copied."""
        texts = cls()
        texts.buffer, texts.ends = buffer, ends
        return texts

    def append(self, text: str | bytes) -> None:
        # The name of a file may be any bytes; Python gives those that are not UTF-8 as lone surrogates.
        self.buffer += text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        self.ends.append(len(self.buffer))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        """The string as it was appended: it names the same file."""
        return self.encoded(index).decode("utf-8", "surrogateescape")

    def readable(self, index: int) -> str:
        """The string for people: bytes that are not UTF-8 become question marks."""
        return self.encoded(index).decode("utf-8", "replace")

    def encoded(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index > 0 else 0
        return bytes(self.buffer[start : int(self.ends[index])])

    def take(self, indices: Iterable[int]) -> Texts:
        """These strings in this order."""
        return Texts(map(self.encoded, indices))
