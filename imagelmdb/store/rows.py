"""From an item of a source to a row of a store: read, encode, check, pack."""

from __future__ import annotations

from typing import NamedTuple

from imagelmdb.errors import BadImageError
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.format import checksum, pack_record
from imagelmdb.store.sources import Source
from imagelmdb.store.writer import Row


class Bad(NamedTuple):
    """An item of the source that is no image."""

    position: int
    name: str
    reason: str


def make_row(source: Source, item: int, position: int, how: Encoding) -> Row | Bad:
    name = source.name(item)
    try:
        sample = source.read(item)
        image, tiles, width, height, note = encode_image(sample.image, how)
    except (OSError, ValueError, BadImageError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Bad(position, name, " ".join(reason.split()))
    check = checksum(image, sample.label, tiles)
    value = pack_record(image, sample.label, tiles, check)
    return Row(position, value, sample.label, width, height, check, len(image), name, note)
