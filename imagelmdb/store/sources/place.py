"""Place: where a user says the data is, and what a first look finds there. Each source decides if it fits.

place = look_at("train-{000..146}.tar")
place.kind, place.files    # "pattern", [Path("train-000.tar"), ...]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from imagelmdb.errors import UserError

_COMPRESSIONS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7z": "unxz", b"(\xb5\x2f\xfd": "unzstd"}
_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Place:
    """A folder, a file, or the files that match a pattern."""

    text: str  # as the user wrote it, for messages
    path: Path
    kind: str  # "folder", "file" or "pattern"
    files: list[Path]  # sorted: those right in the folder, the file itself, or those that match
    has_folders: bool = False  # a folder with folders in it
    head: bytes = b""  # how a file begins
    devkit: str | Path | None = None
    root: str | Path | None = None

    @property
    def is_tar(self) -> bool:
        return self.kind == "file" and (self.head[257:262] == b"ustar" or self.path.suffix == ".tar")

    @property
    def tars(self) -> list[Path]:
        """The tars in a folder that has nothing but files in it."""
        only_files = self.kind == "folder" and not self.has_folders
        return [file for file in self.files if file.suffix == ".tar"] if only_files else []


def look_at(path: str | Path, *, devkit: str | Path | None = None, root: str | Path | None = None) -> Place:
    """What is at `path`; UserError if nothing can be read there."""
    text, found = str(path), Path(path).expanduser()
    options = {"devkit": devkit, "root": root}
    if not found.exists() and re.search(r"[*{?]", str(found)):
        return Place(text, found, "pattern", expand_pattern(str(found)), **options)
    if not found.exists():
        raise UserError(f"{path} does not exist")
    if found.is_dir():
        entries = sorted(found.iterdir())
        files = [entry for entry in entries if not entry.is_dir()]
        # A download from the Hub leaves a folder .cache behind.
        has_folders = any(not entry.name.startswith(".") for entry in {*entries} - {*files})
        return Place(text, found, "folder", files, has_folders, **options)
    if not found.is_file():
        raise UserError(f"{path} is not a regular file: write what it gives into one, and pass that")
    with found.open("rb") as opened:
        head = opened.read(1024)
    if not head:
        raise UserError(f"{path} is empty")
    if tool := next((tool for magic, tool in _COMPRESSIONS.items() if head.startswith(magic)), None):
        raise UserError(
            f"{path} is compressed, and images in it cannot be found: unpack it with {tool} first"
        )
    return Place(text, found, "file", [found], head=head, **options)


def expand_pattern(pattern: str) -> list[Path]:
    """The files that "train-{000..146}.tar" or "train-*.tar" names, in order. Each must exist."""
    names = [pattern]
    while found := _BRACES.search(names[0]):  # the first braces are the same in all names
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        if not numbers:
            raise UserError(f"{pattern}: {found[0]} is an empty range, write the smaller number first")
        if len(names) * len(numbers) > _MOST_FILES:
            raise UserError(f"{pattern} names more than {_MOST_FILES} files")
        written = [f"{number:0{len(first)}d}" for number in numbers]
        names = [name.replace(found[0], number, 1) for name in names for number in written]
    if len(names) > 1:
        missing = [name for name in names if not Path(name).is_file()]
        if missing:
            raise UserError(
                f"{pattern} asks for {len(names)} files, and {len(missing)} do not exist: {missing[0]}"
            )
        return [Path(name) for name in names]
    found = sorted(file for file in Path(names[0]).parent.glob(Path(names[0]).name) if file.is_file())
    if not found:
        raise UserError(f"no file matches {pattern}")
    return found


def check_one_set(place: Place, files: list[Path]) -> None:
    """Train and validation shards in one folder must not become one store."""
    sets = sorted({re.split(r"[-_.]?\d", file.name)[0] for file in files})
    if len(sets) > 1:
        example = files[0].parent / f"{sets[0]}*{files[0].suffix}"
        raise UserError(
            f"{place.text} has shards of {', '.join(sets)}: pass one set, for example '{example}'"
        )
