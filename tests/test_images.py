"""One judge: a file that converts is a file that trains, and the other way round."""

import io
import os
import random
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from jpegs import insert_before, make_jpeg, make_odd_jpeg, make_segment, replace_size
from odd_jpegs import HEIGHT, WIDTH, make_damaged_jpegs, make_whole_jpegs
from PIL import Image

from imagelmdb import __main__
from imagelmdb.data.datasets import ImageFolderLMDB
from imagelmdb.data.loader import make_eval_loader, make_train_loader
from imagelmdb.decode import make_decoder
from imagelmdb.errors import BadImageError, StoreError, UserError
from imagelmdb.sample import make_photo
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoded, Encoding, encode_image
from imagelmdb.store.format import Meta
from imagelmdb.store.images import MAX_PIXELS, decode_pixels, open_image, read_size
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.sources.folder import FolderStore
from imagelmdb.store.verify import verify
from imagelmdb.store.writer import Row, ShardWriter


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
    **{
        f"{kind}, {n} junk bytes before EOI": KINDS[kind][:-2] + b"\x5a" * n + KINDS[kind][-2:]
        for kind in ("4:4:4", "progressive", "grey", "cmyk")
        for n in (2, 9, 30)
    },
    **{
        f"{kind}, cut at {share}": KINDS[kind][: int(len(KINDS[kind]) * share)]
        for kind in KINDS
        for share in (0.02, 0.5, 0.9, 0.999)
    },
}
WHOLE, DAMAGED = make_whole_jpegs(), make_damaged_jpegs()
# Their pixels are kept, and not their coefficients.
REENCODED = {
    "CMYK",
    "CMYK with subsampled inks",
    "YCCK with a subsampled black",
    "lossless grey",
}
ENCODINGS = {
    "tiled": Encoding(),
    "no-tile": Encoding(tile=False),
    "raw": Encoding("raw"),
    "quality": Encoding(quality=90),
    "max-size": Encoding(max_size=64),
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


def run_imagelmdb(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["imagelmdb", *arguments])
        return __main__.main()


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
        for how in (Encoding(), Encoding(tile=False)):
            assert accepts(encode_image, bytes(flipped), how) == judged, (at // 8, at % 8)
            if judged and not (stored := encode_image(bytes(flipped), how)).note:
                assert np.array_equal(decode_pixels(stored.image), decode_pixels(bytes(flipped))), at


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_jpeg_whose_pixels_are_whole_decodes_as_pillow_decodes_it(name):
    pixels = decode_pixels(WHOLE[name])
    # Pillow does not know that a height may follow, and waits in vain for restart markers.
    ordinary = name in ("a height that follows the scan", "restart markers that are announced and missing")
    data = make_jpeg(WIDTH, HEIGHT, quality=90) if ordinary else WHOLE[name]
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(decode_pixels(WHOLE[name], "BGR"), pixels[:, :, ::-1])


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_jpeg_is_stored_without_loss_where_its_coefficients_are_whole(name):
    pixels = decode_pixels(WHOLE[name])
    for how in (Encoding(), Encoding(tile=False)):
        stored = encode_image(WHOLE[name], how)
        assert (bool(stored.note) and not stored.is_lossless) == (name in REENCODED)
        assert stored.note or stored.image == WHOLE[name]
        assert np.array_equal(decode_pixels(stored.image), pixels) == (name not in REENCODED)
    raw = encode_image(WHOLE[name], Encoding("raw"))
    assert raw.image == pixels.tobytes() and (raw.width, raw.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_jpeg_is_refused_whatever_a_decoder_complains_of_first(name):
    for how in ENCODINGS.values():
        assert not accepts(encode_image, DAMAGED[name], how), how
    assert not accepts(decode_pixels, DAMAGED[name])


def write_odd_tree(folder: Path) -> Path:
    """Class folders of odd files, sound and damaged; with the files of $ODD_FILES, if that names a folder."""
    files = {**KINDS, **ODD, **WHOLE, **DAMAGED}
    if more := os.environ.get("ODD_FILES"):
        files |= {file.name: file.read_bytes() for file in sorted(Path(more).glob("*.jp*g"))}
    for number, data in enumerate(files.values()):
        (folder / f"c{number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"c{number % 3}" / f"{number:03d}.JPEG").write_bytes(data)
    return folder


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ENCODINGS)
def test_what_converts_trains_and_evaluates_and_files_give_the_pixels_of_their_store(name, tmp_path):
    tree, path = write_odd_tree(tmp_path / "tree"), tmp_path / "store"
    report = convert(tree, path, how=ENCODINGS[name], workers=0, skip_bad=True)
    assert len(WHOLE) + len(KINDS) <= report.count
    for bad in report.bad:
        (tree / bad.name).unlink()
    store, files = LMDBStore(path), FolderStore(tree)
    assert len(store) == len(files)
    reencoded = {name for name, _ in report.reencoded}
    batches = {}
    for kind, where in {"store": path, "files": tree}.items():
        options = {"batch_size": 1, "workers": 0, "size": 48}
        train = make_train_loader(where, shuffle="none", **options)
        evaluate = make_eval_loader(where, **options)
        batches[kind] = [[images.clone() for images, _ in train.epoch(n)] for n in range(4)]
        batches[kind].append([images.clone() for images, _ in evaluate.epoch(0)])
    for ours, theirs in zip(batches["store"], batches["files"], strict=True):
        assert len(ours) == len(theirs) == len(store)
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if name in ("tiled", "no-tile", "raw") and store.name(n) not in reencoded:
                assert torch.equal(a, b), store.name(n)


# 8 kB that claim 4.3 billion pixels: in Huffman codes, which cannot be, and in arithmetic coding, which can.
BOMBS = {
    "sequential": replace_size(make_jpeg(90, 70), (90, 70), (65500, 65500)),
    "progressive": replace_size(make_jpeg(90, 70, progressive=True), (90, 70), (65500, 65500)),
    "arithmetic": replace_size(make_odd_jpeg(90, 70, [(1, 1)] * 3, frame=0xC9), (90, 70), (65500, 65500)),
    "CMYK": replace_size(make_jpeg(90, 70, mode="CMYK"), (90, 70), (65500, 65500)),
    "DNL": insert_before(
        replace_size(make_jpeg(90, 70), (90, 70), (65500, 0)), 0xD9, make_segment(0xDC, b"\xff\xdc")
    ),
    "PNG": encode(Image.new("1", (20_000, 20_000)), "PNG"),
}


@pytest.fixture
def little_memory():
    """Fails the test if it allocates more than 20 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_claims_too_many_pixels_is_refused_before_memory_is_taken(name, tmp_path, little_memory):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "good.JPEG").write_bytes(KINDS["grey"])
    (tmp_path / "tree" / "a" / "bomb.JPEG").write_bytes(BOMBS[name])
    reason = "more than 178956970 pixels|exceeds limit of 178956970|cannot have"
    for how in ENCODINGS.values():
        with pytest.raises(BadImageError, match=reason):
            encode_image(BOMBS[name], how)
    for read in (read_size, decode_pixels, open_image):
        with pytest.raises(BadImageError, match=reason):
            read(BOMBS[name])
    for decoder in ("cpu", "pillow"):
        loader = make_eval_loader(tmp_path / "tree", batch_size=1, workers=0, decode=decoder)
        with pytest.raises(StoreError, match=f"bomb.*({reason})"):
            list(loader.epoch(0))
    writer = ShardWriter(tmp_path / "s.lmdb", "test", source="test")
    writer.write([Row.pack(0, Encoded(BOMBS[name], b"", 90, 70, ""), label=0, name="a/bomb.JPEG")])
    writer.finish(Meta("jpeg", ["a"], total=1, conversion="test"))
    writer.close()
    assert re.search(reason, "".join(verify(tmp_path / "s.lmdb", workers=0)))
    with pytest.raises(StoreError, match=reason):
        ImageFolderLMDB(tmp_path / "s.lmdb")[0]
    with pytest.raises(StoreError, match=reason):
        list(make_eval_loader(tmp_path / "s.lmdb", batch_size=1, workers=0).epoch(0))


@pytest.mark.parametrize("kind", ["4:2:0", "cmyk", "png"])
def test_the_limit_of_pixels_is_inclusive_and_can_be_raised_beyond_pillows(kind, monkeypatch):
    data, pixels = KINDS[kind], 120 * 90
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for how in ENCODINGS.values():
        with pytest.raises(BadImageError, match=f"120 x 90 px|exceeds limit of {2 * 100}"):
            encode_image(data, how, max_pixels=pixels - 1)
        encode_image(data, how, max_pixels=MAX_PIXELS + 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert encode_image(data, Encoding(), max_pixels=pixels).width == 120


def test_the_limit_is_an_option_of_conversion_verify_and_training(tmp_path, capsys):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "1.JPEG").write_bytes(KINDS["4:2:0"])
    (tmp_path / "tree" / "a" / "2.JPEG").write_bytes(KINDS["grey"][:100])
    tree, store = str(tmp_path / "tree"), str(tmp_path / "s.lmdb")
    command = ["convert", "--dataset", tree, "-o", store, "--no-tile", "--skip-bad", "--max-pixels"]
    assert run_imagelmdb([*command, "10799"]) == 2
    assert "120 x 90 px are more than 10799" in capsys.readouterr().err
    assert run_imagelmdb([*command, "10800"]) == 0
    assert run_imagelmdb(["verify", store, "--max-pixels", "10799"]) == 1
    assert run_imagelmdb(["verify", store, "--max-pixels", "10800"]) == 0
    for path in (tree, store):
        for decoder in ("cpu", "pillow"):
            limited = make_decoder(decoder, max_pixels=10799)
            with pytest.raises(StoreError, match="more than 10799"):
                list(make_eval_loader(path, batch_size=1, workers=0, decode=limited).epoch(0))


def test_a_file_for_which_the_memory_is_too_small_is_that_files_error(tmp_path, monkeypatch):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for name, data in {"1.JPEG": KINDS["4:2:0"], "2.JPEG": KINDS["4:4:4"]}.items():
        (tmp_path / "tree" / "a" / name).write_bytes(data)
    decode = simplejpeg.decode_jpeg

    def run_out_of_memory(data, *arguments, **options):
        if data == KINDS["4:2:0"]:
            raise MemoryError
        return decode(data, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", run_out_of_memory)
    report = convert(tmp_path / "tree", tmp_path / "s.lmdb", how=Encoding("raw"), workers=2, skip_bad=True)
    assert [(bad.name, bad.reason) for bad in report.bad] == [
        ("a/1.JPEG", "there is not enough memory to decode it")
    ]
    loader = make_eval_loader(tmp_path / "tree", batch_size=1, workers=0)
    with pytest.raises(StoreError, match=r"1\.JPEG.*not enough memory"):
        list(loader.epoch(0))
