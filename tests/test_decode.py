import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import make_jpeg, make_pixels
from PIL import Image
from torchvision.transforms import functional as F

from imagelmdb.decode import Crop, decode
from imagelmdb.decode.libjpeg import LibjpegDecoder
from imagelmdb.decode.pillow import PillowDecoder
from imagelmdb.errors import BadImageError
from imagelmdb.jpeg.recode.tile import tile_jpeg
from imagelmdb.order.plan import plan_eval, plan_train
from imagelmdb.sample import make_photo
from imagelmdb.store.format import Record
from imagelmdb.store.images import read_image, read_record_size


def file_record(data):
    return Record(memoryview(data), 0)


def tiled_record(data):
    tiled = tile_jpeg(data)
    return Record(memoryview(tiled.data), 0, tiled.index)


def raw_record(pixels):
    pixels = pixels.copy()
    pixels.flags.writeable = False  # as the mapping of a store
    return Record(pixels, 0)


def random_boxes(width, height, count):
    boxes, flips = plan_train(0, 0, np.arange(count), np.tile((width, height), (count, 1)))
    return zip([tuple(b) for b in boxes.tolist()], flips.tolist(), strict=True)


@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"mode": "L"}], ids=["444", "420", "grey"]
)
def test_tiled_whole_and_raw_give_the_same_pixels_and_pillow_nearly_the_same(options):
    data = make_jpeg(230, 170, 1, quality=92, **options)
    whole, tiled = file_record(data), tiled_record(data)
    raw = raw_record(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    for box, flip in random_boxes(230, 170, 25):
        image = decode(whole, box, 64, flip=flip)
        assert image.shape == (3, 64, 64) and image.stride() == (1, 192, 3)
        assert torch.equal(image, decode(tiled, box, 64, flip=flip))
        assert torch.equal(image, decode(raw, box, 64, flip=flip))
        reference = decode(tiled, box, 64, flip=flip, decoder=PillowDecoder())
        assert (image.int() - reference.int()).abs().max() <= 1


def test_resize_is_torchs_for_boxes_of_every_small_shape_and_stays_inside_its_place():
    pixels = make_pixels(40, 40)
    record = raw_record(pixels)
    for size in (1, 2, 3, 24):
        for width in (1, 2, 3, 24, 40):
            for height in (1, 2, 3, 24, 40):
                batch = np.full((3, size, size, 3), 7, np.uint8)
                LibjpegDecoder().decode([Crop(record, (0, 0, width, height))], batch[1:2])
                image = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None]
                expected = torch.nn.functional.interpolate(
                    image, (size, size), mode="bilinear", antialias=True
                )
                assert np.array_equal(batch[1], expected[0].permute(1, 2, 0))
                assert (batch[0] == 7).all() and (batch[2] == 7).all()


def test_a_flip_mirrors():
    record = raw_record(make_pixels(50, 40))
    image, mirrored = decode(record, (3, 5, 40, 30), 30), decode(record, (3, 5, 40, 30), 30, flip=True)
    assert (image.flip(2).int() - mirrored.int()).abs().max() <= 1
    assert not torch.equal(image, mirrored)


def test_a_raw_crop_touches_only_its_rows(tmp_path):
    (tmp_path / "pixels").write_bytes(b"x" * (3 * 1000 * 12_000))
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(12_000, 1000, 3))
    decode(Record(pixels, 0), (500, 6000, 20, 20), 20)
    maps = Path("/proc/self/smaps").read_text()
    mapped = maps[maps.index(str(tmp_path / "pixels")) :]
    assert 0 < int(re.search(r"Rss: +(\d+) kB", mapped)[1]) < 4200  # of 35,000, and pages may be of 2 MB


def test_a_batch_decodes_as_its_images_do_and_says_which_is_damaged():
    files = [make_jpeg(90 + n, 70, n) for n in range(40)]
    records = [(file_record, tiled_record)[n % 2](data) for n, data in enumerate(files)]
    boxes, flips = [(n, 3, 50, 40) for n in range(40)], [n % 3 == 0 for n in range(40)]
    crops = [Crop(*crop) for crop in zip(records, boxes, flips, strict=True)]
    images = np.empty((40, 32, 32, 3), np.uint8)
    for decoder in (LibjpegDecoder(), PillowDecoder()):
        decoder.decode(crops, images)
        for crop, image in zip(crops, images, strict=True):
            alone = decode(crop.record, crop.box, 32, flip=crop.flip, decoder=decoder)
            assert np.array_equal(image, alone.permute(1, 2, 0))
    for row in (3, 36):  # of a tiled JPEG and of a file
        image = records[row].image
        damaged = records[row]._replace(image=image[: len(image) // 2])
        for decoder in (LibjpegDecoder(), PillowDecoder()):
            with pytest.raises(BadImageError) as caught:
                decoder.decode([*crops[:row], Crop(damaged, boxes[row]), *crops[row + 1 :]], images)
            assert caught.value.row == row


def test_evaluation_is_close_to_torchvisions_two_steps():
    differences = []
    for seed, (width, height) in enumerate([(500, 375), (375, 500), (500, 333), (333, 500), (230, 300)]):
        pixels = make_photo(np.random.default_rng(seed), width, height)
        box = plan_eval(np.array([(width, height)]), size=224, resize=256)[0].tolist()
        ours = decode(raw_record(pixels), tuple(box), 224)
        theirs = F.pil_to_tensor(F.center_crop(F.resize(Image.fromarray(pixels), 256), 224))
        differences.append((ours.float() - theirs.float()).abs().mean().item())
    assert np.mean(differences) < 2


def test_cmyk_and_png_are_taken_as_pillow_takes_them():
    cmyk = make_jpeg(60, 40, 2, mode="CMYK")
    png = io.BytesIO()
    Image.fromarray(make_pixels(60, 40)).save(png, "PNG")
    for data in (cmyk, png.getvalue()):
        record = file_record(data)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert read_record_size(record) == (60, 40)
        exact = decode(record, (5, 6, 20, 20), 20)  # nothing to resize
        assert np.array_equal(exact.permute(1, 2, 0), expected[6:26, 5:25])
        assert np.array_equal(np.asarray(read_image(record)), expected)


def test_junk_before_the_end_marker_is_skipped():
    data = make_jpeg(60, 40, 2)
    junk = file_record(data[:-2] + b"\x12\x34" + data[-2:])
    box = (0, 0, 60, 40)
    assert torch.equal(decode(junk, box, 32), decode(file_record(data), box, 32))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "junk and truncated"])
@pytest.mark.parametrize("tiled", [False, True])
def test_damage_is_an_error_and_never_pixels(damage, tiled):
    data = make_jpeg(90, 70, 3, quality=95)
    record = tiled_record(data) if tiled else file_record(data)
    whole, half = bytes(record.image), len(record.image) // 2
    damaged = {
        "truncated": whole[:half],
        "flipped": whole[:half] + b"\xff\xc4" + whole[half + 2 :],
        "text": b"<html>",
        "empty": b"",
        "junk and truncated": whole[:half] + b"\x12\x34\xff\xd9",
    }[damage]
    with pytest.raises(BadImageError):
        decode(record._replace(image=memoryview(damaged)), (0, 0, 90, 70), 32)


@pytest.mark.parametrize("decoder", [LibjpegDecoder(), PillowDecoder()], ids=["libjpeg", "pillow"])
def test_a_box_outside_the_image_is_an_error(decoder):
    jpeg = make_jpeg(90, 70)
    for record in (file_record(jpeg), tiled_record(jpeg), raw_record(make_pixels(90, 70))):
        for box in ((50, 0, 50, 70), (-1, 5, 20, 20), (5, -1, 20, 20), (5, 60, 20, 20), (5, 5, 0, 20)):
            with pytest.raises(BadImageError, match=r"is not inside|does not lie in"):
                decode(record, box, 32, decoder=decoder)


def test_pixels_in_another_order_of_memory_are_the_same():
    pixels = make_pixels(50, 40)
    grey = np.broadcast_to(pixels[:, :, :1], pixels.shape)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    for view in (planes, grey):
        for flip in (False, True):
            expected = decode(raw_record(view), (3, 5, 40, 30), 30, flip=flip)
            assert torch.equal(decode(Record(view, 0), (3, 5, 40, 30), 30, flip=flip), expected)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_dct_scale_is_close_and_the_same_for_tiled_and_whole(factor):
    side = 32 * factor + 9
    photo = io.BytesIO()
    pixels = make_photo(np.random.default_rng(0), side + 60, side + 40)
    Image.fromarray(pixels).save(photo, "JPEG", quality=95, subsampling="4:2:0")
    data, box = photo.getvalue(), (21, 13, side, side)
    exact = decode(file_record(data), box, 32)
    scaled = decode(file_record(data), box, 32, decoder=LibjpegDecoder(dct_scale=True))
    assert torch.equal(scaled, decode(tiled_record(data), box, 32, decoder=LibjpegDecoder(dct_scale=True)))
    assert not torch.equal(scaled, exact)
    assert (scaled.float() - exact.float()).abs().mean() < 6
    small = (0, 0, 60, 60)  # less than twice the size: not scaled
    assert torch.equal(
        decode(file_record(data), small, 32, decoder=LibjpegDecoder(dct_scale=True)),
        decode(file_record(data), small, 32),
    )
