"""One judge: a file that converts is a file that trains, and the other way round."""

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.sample import make_photo
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.images import decode_pixels, open_image
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.sources.folder import FolderStore
from imagelmdb.store.verify import verify


def encode(photo: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    photo.save(out, kind, **options)
    return out.getvalue()


PHOTO = Image.fromarray(make_photo(np.random.default_rng(0), 120, 90))
KINDS = {
    "4:4:4": encode(PHOTO, quality=96, subsampling="4:4:4"),
    "4:2:0": encode(PHOTO, quality=90),
    "restarts": encode(PHOTO, quality=90, restart_marker_blocks=5),
    "progressive": encode(PHOTO, quality=90, progressive=True),
    "grey": encode(PHOTO.convert("L")),
    "cmyk": encode(PHOTO.convert("CMYK")),
    "png": encode(PHOTO, "PNG"),
    "webp": encode(PHOTO, "WEBP"),
}
ODD = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>\n",
    "a marker": b"\xff\xd8\xff",
    "other JFIF revision": KINDS["4:2:0"].replace(b"JFIF\0\1", b"JFIF\0\2"),
    **{
        f"{kind}, {n} junk bytes before EOI": KINDS[kind][:-2] + bytes(n) + KINDS[kind][-2:]
        for kind in ("4:4:4", "progressive", "grey", "cmyk")
        for n in (2, 8, 9, 30)
    },
    **{
        f"{kind}, cut at {share}": KINDS[kind][: int(len(KINDS[kind]) * share)]
        for kind in KINDS
        for share in (0.02, 0.5, 0.9, 0.999)
    },
}


def damage(data: bytes, seed: int) -> bytes:
    """A flipped bit, two bytes overwritten, or a gap, anywhere in the file."""
    draw, damaged = random.Random(seed), bytearray(data)
    at = draw.randrange(2, len(data) - 2)
    change = draw.choice(["flip", "overwrite", "gap"])
    if change == "flip":
        damaged[at] ^= 1 << draw.randrange(8)
    elif change == "overwrite":
        damaged[at : at + 2] = b"\xa5\x5a"
    else:
        del damaged[at : at + draw.choice([1, 2, 50])]
    return bytes(damaged)


def accepts(function, *arguments) -> bool:
    try:
        function(*arguments)
    except BadImageError:
        return False
    return True


@pytest.mark.parametrize("how", [Encoding(), Encoding("raw"), Encoding(quality=90)], ids=str)
def test_a_conversion_accepts_exactly_the_bytes_that_training_decodes(how):
    files = {**KINDS, **ODD}
    files |= {f"{kind} damaged {seed}": damage(KINDS[kind], seed) for kind in KINDS for seed in range(60)}
    accepted = {name for name, data in files.items() if accepts(decode_pixels, data)}
    assert {name for name, data in files.items() if accepts(encode_image, data, how)} == accepted
    assert KINDS.keys() <= accepted and len(accepted) < len(files)


@pytest.mark.parametrize(
    "name", [name for name in {**KINDS, **ODD} if accepts(decode_pixels, {**KINDS, **ODD}[name])]
)
def test_what_was_accepted_decodes_to_the_same_pixels_from_a_store(name):
    data = {**KINDS, **ODD}[name]
    stored = encode_image(data, Encoding())
    difference = decode_pixels(stored.image).astype(int) - decode_pixels(data)
    assert np.abs(difference).mean() < (1.5 if stored.note else 1e-9)  # a note says that it was re-encoded


@pytest.mark.timeout(60)
def test_a_folder_of_odd_files_trains_with_the_files_that_convert(tmp_path):
    (tmp_path / "tree" / "class").mkdir(parents=True)
    for number, data in enumerate([*KINDS.values(), *ODD.values()]):
        (tmp_path / "tree" / "class" / f"{number:03d}.JPEG").write_bytes(data)
    os.mkfifo(tmp_path / "tree" / "class" / "fifo.JPEG")
    report = convert(open_source(tmp_path / "tree"), tmp_path / "s.lmdb", workers=0, skip_bad=True)
    files, bad = FolderStore(tmp_path / "tree"), set()
    for index in range(len(files)):
        try:
            open_image(files[index].image)
        except (BadImageError, StoreError):
            bad.add(files.name(index))
    assert {item.name for item in report.bad} == bad
    assert "class/fifo.JPEG" in bad and len(LMDBStore(tmp_path / "s.lmdb")) == len(files) - len(bad)
    assert verify(tmp_path / "s.lmdb", workers=0) == []


def test_an_empty_class_folder_is_refused_by_both(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    Path(tmp_path / "dog" / "1.JPEG").write_bytes(KINDS["grey"])
    for opened in (FolderStore, open_source):
        with pytest.raises((StoreError, UserError), match="no image for the class cat"):
            opened(tmp_path)


def test_every_single_flipped_bit_of_the_headers_is_judged_alike():
    """It found Huffman tables and JFIF revisions that conversion passed and libjpeg refuses."""
    data = encode(PHOTO.resize((24, 16)).convert("L"))
    for at in range(8 * data.index(b"\xff\xda")):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        judged = accepts(decode_pixels, bytes(flipped))
        assert accepts(encode_image, bytes(flipped), Encoding()) == judged, (at // 8, at % 8)
