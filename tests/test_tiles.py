import os
import pickle
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from guarded import Guarded
from jpegs import make_jpeg, make_odd_jpeg, make_pixels
from test_decode import file_record, raw_record, tiled_record

from imagelmdb.decode import Crop, choose_decoder, make_decoder
from imagelmdb.decode.libjpeg import LibjpegDecoder
from imagelmdb.decode.tiles import crops as tiles_crops
from imagelmdb.decode.tiles.crops import RECORD, STORED, STORED_PIXELS, Crops, make_crops
from imagelmdb.decode.tiles.decoder import TilesDecoder
from imagelmdb.decode.tiles.record import DAMAGED, DONE, PENDING, UNUSUAL
from imagelmdb.errors import BadImageError, UserError
from imagelmdb.jpeg.index import parse_index
from imagelmdb.jpeg.locate import index_jpeg
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.store.format import pack_record

FACTORS = {"4:4:4": (1, 1), "4:2:0": (2, 2), "4:2:2": (2, 1), "4:4:0": (1, 2)}
LABEL_IN_RECORD = 300
COUNT = int(os.environ.get("FUZZ_COUNT", "3000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


def make_image(sampling: str, width: int, height: int, seed: int = 0, **options) -> bytes:
    if sampling == "grey":
        return make_jpeg(width, height, seed, mode="L", **options)
    if sampling == "4:4:0":  # Pillow cannot write it
        return make_odd_jpeg(width, height, [FACTORS[sampling], (1, 1), (1, 1)], seed)
    return make_jpeg(width, height, seed, subsampling=sampling, **options)


def make_boxes(rng: np.random.Generator, width: int, height: int, count: int) -> list[tuple[int, ...]]:
    """Random boxes, many of them at an edge, very narrow, or as large as a few blocks."""

    def side(full: int) -> tuple[int, int]:
        size = min(full, int(rng.choice([1, 2, 7, 8, 9, 16, 17, rng.integers(1, full + 1), full])))
        return int(rng.choice([0, full - size, rng.integers(0, full - size + 1)])), size

    boxes = []
    for _ in range(count):
        (left, across), (top, down) = side(width), side(height)
        boxes.append((left, top, across, down))
    return boxes


def decode_both(crops: list[Crop], size: int) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = (np.full((len(crops), size, size, 3), fill, np.uint8) for fill in (1, 2))
    TilesDecoder().decode(crops, ours)
    LibjpegDecoder().decode(crops, theirs)
    return ours, theirs


def statuses_of(crops: list[Crop], size: int = 16) -> np.ndarray:
    made = Crops(np.empty((len(crops), size, size, 3), np.uint8))
    for crop in crops:
        made.add_record(*crop)
    return made.make()


@pytest.mark.parametrize("sampling", ["grey", *FACTORS])
def test_crops_are_libjpegs_for_every_sampling_size_and_box(sampling):
    rng = np.random.default_rng(SEED)
    done = 0
    for width, height in ((1, 1), (3, 9), (5, 40), (16, 16), (17, 33), (64, 15), (131, 90), (300, 201)):
        quality = int(rng.choice([30, 75, 95, 100]))
        data = make_image(sampling, width, height, int(rng.integers(100)), quality=quality)
        for tile_width in (None, 8, 48):
            tiled = tile_jpeg(data, tile_width)
            record = tiled_record(data)._replace(image=memoryview(tiled.data), tile_index=tiled.index)
            crops = [Crop(record, box, bool(rng.integers(2))) for box in make_boxes(rng, width, height, 12)]
            size = int(rng.choice([1, 2, 7, 16, 31, 64]))
            ours, theirs = decode_both(crops, size)
            assert np.array_equal(ours, theirs), (width, height, tile_width, size)
            done += (statuses_of(crops) == DONE).sum()
    assert done > 80  # the others are images too narrow for tiles


def test_blocks_of_every_length_are_decoded_as_libjpeg_does():
    rng = np.random.default_rng(SEED)
    for at in (None, *range(1, 64, 9)):
        data = make_odd_jpeg(70, 50, [(2, 1), (1, 1), (1, 1)], 3, frame=0xC1, ac_at=at)
        record = tiled_record(data)
        crops = [Crop(record, box) for box in make_boxes(rng, 70, 50, 8)]
        ours, theirs = decode_both(crops, 20)
        assert np.array_equal(ours, theirs)
        assert (statuses_of(crops) == DONE).all()


def test_what_it_cannot_decode_goes_to_libjpeg():
    odd = make_odd_jpeg(80, 40, [(4, 1), (1, 1), (1, 1)])
    rgb = make_odd_jpeg(80, 40, [(1, 1)] * 3, adobe=0)
    photo = make_jpeg(80, 40)
    records = [
        tiled_record(odd),
        tiled_record(rgb),
        file_record(photo),
        raw_record(make_pixels(80, 40)),
        tiled_record(photo),
        file_record(make_jpeg(80, 40, mode="CMYK")),
    ]
    crops = [Crop(record, (3, 5, 60, 30), bool(n % 2)) for n, record in enumerate(records)]
    ours, theirs = decode_both(crops, 24)
    assert np.array_equal(ours, theirs)
    assert statuses_of([crops[0], crops[1], crops[4]]).tolist() == [UNUSUAL, UNUSUAL, DONE]


def test_coefficients_that_no_encoder_makes_go_to_libjpeg():
    """Flat blocks with steps of 255: libjpeg's transform wraps around."""
    data = make_jpeg(64, 40, quality=95)
    at = data.index(b"\xff\xdb") + 5
    wild = data[:at] + b"\xff" * 64 + data[at + 64 :]
    crops = [Crop(tiled_record(wild), box) for box in make_boxes(np.random.default_rng(SEED), 64, 40, 20)]
    ours, theirs = decode_both(crops, 20)
    assert np.array_equal(ours, theirs)
    assert UNUSUAL in statuses_of(crops)


def test_a_box_too_large_for_the_scratch_memory_goes_to_libjpeg():
    record = tiled_record(make_jpeg(900, 10))
    tiled = parse_index(record.tile_index)
    assert tiled.grid.row_tiles > 1
    crops = [Crop(record, (0, 0, 900, 10))]
    before = getattr(tiles_crops._thread, "scratch", np.empty(0)).size
    ours, theirs = decode_both(crops, 3000)  # 27 MB of output, and as much scratch
    assert np.array_equal(ours, theirs)
    assert tiles_crops._thread.scratch.size < max(before, 1 << 27)


def test_a_damaged_run_raises_and_names_its_row():
    record = tiled_record(make_jpeg(200, 150, 4, quality=90))
    body = parse_index(record.tile_index).grid.header_length
    zeroed = bytearray(record.image)
    zeroed[body + 900 : body + 960] = bytes(60)
    crops = [Crop(record, (0, 0, 200, 150))] * 5
    crops[3] = Crop(record._replace(image=memoryview(bytes(zeroed))), (0, 0, 200, 150))
    with pytest.raises(BadImageError, match="does not fit its tile index") as caught:
        TilesDecoder().decode(crops, np.empty((5, 32, 32, 3), np.uint8))
    assert caught.value.row == 3


def test_most_damage_that_shows_is_found_and_more_of_it_than_by_libjpeg():
    """What is left are changed AC coefficients after which every code is where it was."""
    record = tiled_record(make_jpeg(160, 120, 5, quality=92, subsampling="4:2:0"))
    body = parse_index(record.tile_index).grid.header_length
    rng = np.random.default_rng(SEED)
    whole = np.empty((1, 120, 120, 3), np.uint8)
    TilesDecoder().decode([Crop(record, (0, 0, 160, 120))], whole)
    found, spread = {TilesDecoder: 0, LibjpegDecoder: 0}, 0
    for _ in range(300):
        changed = bytearray(record.image)
        changed[rng.integers(body, len(changed) - 2)] ^= 1 << int(rng.integers(8))
        crop = Crop(record._replace(image=memoryview(bytes(changed))), (0, 0, 160, 120))
        for decoder in found:
            image = np.empty_like(whole)
            try:
                decoder().decode([crop], image)
            except BadImageError:
                found[decoder] += 1
                continue
            if decoder is TilesDecoder:
                columns = np.flatnonzero((image != whole).any((0, 1, 3)))
                spread += columns.size > 0 and np.ptp(columns) > 16  # more than one block shows it
    assert found[TilesDecoder] > max(60, 3 * found[LibjpegDecoder]) and spread < 15, (found, spread)


def damage(rng: np.random.Generator, image: bytes, tiles: bytes, other: bytes) -> tuple[bytes, bytes]:
    """Damage of any kind. The header's and the index's gets CRCs that fit."""
    data, index = bytearray(image), bytearray(tiles)
    header = int.from_bytes(tiles[22:26], "little")
    kind = int(rng.integers(8))
    at = int(rng.integers(header, len(data) - 2))
    if kind == 0:
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(header, len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + 200] = bytes(len(data[at : at + 200]))
    elif kind == 2:
        data[at : at + 300] = rng.bytes(len(data[at : at + 300]))
    elif kind == 3:
        data[at : at + 100] = b"\xff" * len(data[at : at + 100])
    elif kind == 4:
        data[header:] = (other[300:] + bytes(data[header:]))[: len(data) - header]
    elif kind == 5:
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(2, header))] = int(rng.integers(256))
    elif kind == 6:
        for _ in range(int(rng.integers(1, 3))):
            index[int(rng.integers(5, len(index)))] = int(rng.choice([0, 1, 255, rng.integers(256)]))
    else:
        data = data[:at]
        index[30:34] = len(data).to_bytes(4, "little")
    header = int.from_bytes(index[22:26], "little")
    index[26:30] = zlib.crc32(data[:header]).to_bytes(4, "little")
    index[:4] = zlib.crc32(index[4:]).to_bytes(4, "little")
    return bytes(data), bytes(index)


def damage_value(rng: np.random.Generator, image: bytes, tiles: bytes) -> bytes:
    """A record as a store packs it, with now and then a wrong byte where its parts begin and end."""
    value = bytearray(pack_record(image, LABEL_IN_RECORD, tiles)[0])
    if rng.integers(4) == 0:
        at = int(
            rng.choice([rng.integers(0, 8), len(value) - len(tiles) - rng.integers(9, 16), len(value) - 9])
        )
        value[at] = int(rng.integers(256))
    return bytes(value[: int(rng.integers(1, len(value)))] if rng.integers(40) == 0 else value)


def test_no_damage_reads_or_writes_outside_the_memory_that_was_given():
    rng = np.random.default_rng(SEED)
    originals = []
    for n, sampling in enumerate(["grey", *FACTORS]):
        data = make_image(sampling, 150 + n, 100 + n, n, quality=92)
        tiled = tile_jpeg(data)
        originals += [(tiled.data, tiled.index), (data, index_jpeg(data).index)]
    memory = {name: Guarded(1 << 16) for name in ("image", "tiles")}
    scratch, out = Guarded(1 << 22), Guarded(40 * 40 * 3)
    found = np.zeros(5, int)
    for n in range(COUNT):
        (image, tiles), (other, _) = (originals[rng.integers(len(originals))] for _ in range(2))
        if n % 20:
            image, tiles = damage(rng, image, tiles, other)
        value = damage_value(rng, image, tiles) if n % 2 else None
        image, tiles = (
            memory["image"].place_at_end(image if value is None else value),
            memory["tiles"].place_at_end(tiles),
        )
        size = int(rng.integers(1, 41))
        images = out.end(size * size * 3)[-size * size * 3 :].reshape(1, size, size, 3)
        width, height = (int.from_bytes(tiles[at : at + 2].tobytes(), "little") for at in (16, 18))
        box = make_boxes(rng, min(max(width, 1), 4000), min(max(height, 1), 4000), 1)[0]
        kind = RECORD if value is None else STORED if rng.integers(8) else STORED_PIXELS
        row = (PENDING, kind, image.ctypes.data, image.size, tiles.ctypes.data, tiles.size, *box)
        rows = np.array([(*row, int(rng.integers(2)), LABEL_IN_RECORD, width, height)], np.int64)
        # Just what it asks for, so that the end of it is the guard.
        needed = make_crops(rows, images, scratch.end(1 << 16, align=256))
        if needed > 1 << 22:
            continue
        if needed:
            assert make_crops(rows, images, scratch.end(needed, align=256)) == 0
        found[rows[0, 0]] += 1
    assert found[DONE] > COUNT // 100 and found[DAMAGED] > COUNT // 5 and found[UNUSUAL] > COUNT // 20, found


def test_threads_give_equal_pixels_and_keep_their_memory_apart():
    records = [tiled_record(make_jpeg(200 + n, 150, n, subsampling="4:2:0")) for n in range(6)]
    crops = [Crop(records[n % 6], (n % 50, n % 30, 100 + n % 40, 90), n % 3 == 0) for n in range(60)]
    expected = np.empty((60, 48, 48, 3), np.uint8)
    decoder = TilesDecoder()
    decoder.decode(crops, expected)
    wrong = []

    def work():
        for _ in range(5):
            images = np.zeros_like(expected)
            decoder.decode(crops, images)
            if not np.array_equal(images, expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_decoder_can_be_pickled():
    record = tiled_record(make_jpeg(60, 40))
    images = np.empty((1, 8, 8, 3), np.uint8)
    pickle.loads(pickle.dumps(TilesDecoder())).decode([Crop(record, (0, 0, 60, 40))], images)
    assert images.any()


def test_auto_says_which_decoder_it_is_and_why():
    assert choose_decoder("auto").describe() == "decoder: tiles"
    assert choose_decoder("cpu") == choose_decoder("auto")
    scaled = choose_decoder("auto", dct_scale=True)
    assert (
        scaled.describe() == "decoder: libjpeg, since only libjpeg can decode at a smaller size (dct_scale)"
    )
    assert make_decoder("cpu", dct_scale=True).dct_scale
    with pytest.raises(UserError, match="dct_scale is an option of the libjpeg decoder"):
        make_decoder("tiles", dct_scale=True)
    with pytest.raises(UserError, match="decode 'jpeg' is not one of auto, tiles"):
        make_decoder("jpeg")


PROGRAM = """
import sys
import numpy as np
from imagelmdb.decode import Crop
from imagelmdb.decode.tiles.decoder import TilesDecoder
from imagelmdb.store.format import Record
from pathlib import Path
folder = Path(sys.argv[1])
images = np.empty((40, 32, 32, 3), np.uint8)
read = lambda name: (folder / name).read_bytes()
record = [Record(memoryview(read(f"{n}.jpg")), 0, read(f"{n}.tiles")) for n in range(2)]
TilesDecoder().decode([Crop(record[n % 2], (n, n % 20, 80 + n, 60), n % 3 == 0) for n in range(40)], images)
np.save(folder / "images.npy", images)
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "environ",
    [
        {"IMAGELMDB_VECTOR_BYTES": "16", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"IMAGELMDB_VECTOR_BYTES": "64"},
    ],
    ids=["plain", "wide"],
)
def test_every_width_of_vectors_gives_equal_pixels(environ, tmp_path):
    for n, sampling in enumerate(("4:4:4", "4:2:0")):
        tiled = tile_jpeg(make_image(sampling, 170, 90, n))
        (tmp_path / f"{n}.jpg").write_bytes(tiled.data)
        (tmp_path / f"{n}.tiles").write_bytes(tiled.index)
    pixels, messages = [], []
    for variables in ({}, environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(
            command, env=os.environ | variables, check=True, timeout=800, stderr=subprocess.PIPE, text=True
        )
        pixels.append(np.load(tmp_path / "images.npy"))
        messages.append(done.stderr)
    assert np.array_equal(*pixels)
    assert messages[1] == "compiling the decoder, once: about half a minute\n"


def test_without_a_writable_cache_the_code_is_kept_in_a_temporary_folder(tmp_path):
    """In a function that compiles fast."""
    (tmp_path / "tmp").mkdir()
    program = tmp_path / "package" / "program.py"
    program.parent.mkdir()
    program.write_text(
        "from imagelmdb.jpeg.jit import jit\n"
        "@jit\ndef double(x): return 2 * x\n"
        "@jit\ndef triple(x): return 3 * x\n"
        "print(double(4), triple(4))\n"
    )
    (program.parent / "__pycache__").write_text("so that nobody can make the folder")
    environ = os.environ | {
        "HOME": "/proc/nobody",
        "XDG_CACHE_HOME": "/proc/nobody",
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    environ.pop("NUMBA_CACHE_DIR", None)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(program)], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == "8 12\n"
        assert done.stderr.count("compiled code is kept in") == 1, done.stderr
    assert len(list((tmp_path / "tmp").rglob("*.nbc"))) == 2
