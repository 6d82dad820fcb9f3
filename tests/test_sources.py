"""Sources list what torchvision's ImageFolder lists, whatever the data comes in; mistakes say the way out."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import tarfile
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jpegs import make_jpeg
from PIL import Image

from imagelmdb import sample
from imagelmdb.errors import DAMAGE, UserError
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoded
from imagelmdb.store.format import Meta
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import DatasetSource, open_source
from imagelmdb.store.sources.devkit import META, read_devkit
from imagelmdb.store.sources.devkit import TRUTH as TRUTH_FILE
from imagelmdb.store.sources.source import ListedSource
from imagelmdb.store.sources.tar import scan_tar
from imagelmdb.store.texts import Texts
from imagelmdb.store.writer import Row, ShardWriter


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Class folders with odd names, a folder in a class, a link, other files, and upper-case suffixes."""
    root = tmp_path_factory.mktemp("tree") / "train"
    sample.make_tree(root.parent / "made", classes=3, train=4, val=0, scale=0.1)
    (root.parent / "made" / "train").rename(root)
    names = sorted(p.name for p in root.iterdir())
    first = sorted((root / names[0]).iterdir())
    (root / names[0] / "deep").mkdir()
    first[0].rename(root / names[0] / "deep" / "a photo é.jpg")
    (root / names[0] / "deep-2").mkdir()
    first[1].rename(root / names[0] / "deep-2" / "B.JPEG")
    (root / names[1]).rename(root / "Zebra crossing")
    (root / "Zebra crossing" / "notes.txt").write_text("no image")
    (root / "readme.txt").write_text("no class")
    return root


def read_all(source):
    return [(source.name(i), source.read(i).label, bytes(source.read(i).image)) for i in range(len(source))]


def make_tar(path, members):
    with path.open("wb") as file:
        write_members(file, members)
    return path


def write_members(file, members):
    """members: name -> bytes, or None for a folder."""
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))


def tar_bytes(members):
    out = io.BytesIO()
    write_members(out, members)
    return out.getvalue()


def folder_rows(tree):
    from torchvision.datasets import ImageFolder  # not where worker processes import this file

    folder = ImageFolder(tree)
    return folder.classes, [
        (Path(path).relative_to(tree).as_posix(), label, Path(path).read_bytes())
        for path, label in folder.samples
    ]


def test_a_folder_lists_what_imagefolder_lists_in_its_order_also_through_links(tree, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in (entry for entry in tree.iterdir() if entry.is_dir()):
        if (folder / "deep").exists():
            (linked / folder.name).mkdir()
            for entry in folder.iterdir():
                (linked / folder.name / entry.name).symlink_to(entry)
        else:
            (linked / folder.name).symlink_to(folder)
    for root in (tree, linked):
        classes, rows = folder_rows(root)
        source = open_source(root)
        assert source.classes == classes and source.classes[0] == "Zebra crossing"
        assert read_all(source) == rows and len(rows) == 12
        assert source.description == f"folder {root}"


def test_a_tar_of_class_folders_equals_the_folder_with_or_without_a_folder_on_top(tree, tmp_path):
    classes, rows = folder_rows(tree)
    for format_ in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        for top in ("", "./", "some/", "./some/"):
            path = tmp_path / "pets.tar"
            with tarfile.open(path, "w", format=format_) as archive:
                archive.add(tree, arcname=top.rstrip("/") or ".")
            source = open_source(path)
            assert source.classes == classes
            assert read_all(source) == rows


def test_a_tar_packed_in_any_order_equals_the_folder(tree, tmp_path):
    classes, rows = folder_rows(tree)
    backwards = make_tar(tmp_path / "a.tar", {name: data for name, _, data in reversed(rows)})
    assert open_source(backwards).classes == classes and read_all(open_source(backwards)) == rows


def test_the_train_tar_of_class_tars_equals_the_folder(tree, tmp_path):
    classes, rows = folder_rows(tree)
    inner = {}
    for name in reversed(classes):
        members = {n.partition("/")[2]: data for n, _, data in reversed(rows) if n.startswith(name + "/")}
        inner[f"{name}.tar"] = tar_bytes(members)
    whole = open_source(make_tar(tmp_path / "ILSVRC2012_img_train.tar", inner))
    (tmp_path / "tars").mkdir()
    for name, content in inner.items():
        (tmp_path / "tars" / name).write_bytes(content)
    for source in (whole, open_source(tmp_path / "tars")):
        assert source.classes == classes and read_all(source) == rows


@pytest.mark.parametrize("long", [False, True])
def test_scanning_a_tar_finds_the_bytes_that_tarfile_finds(tmp_path, long):
    rng = np.random.default_rng(0)
    members = {f"c/{'x' * (200 * long)}{i}ü.jpg": rng.bytes(int(rng.integers(0, 2000))) for i in range(30)}
    path = make_tar(tmp_path / "a.tar", members)
    data = path.read_bytes()
    found = {m.name: data[m.offset : m.offset + m.size] for m in scan_tar(path)}
    assert found == members


# the devkit


def element(kind, payload, order="<"):
    if 0 < len(payload) <= 4:
        return struct.pack(order + "I", len(payload) << 16 | kind) + payload.ljust(4, b"\0")
    return struct.pack(order + "II", kind, len(payload)) + payload + b"\0" * (-len(payload) % 8)


def matrix(array_class, dims, *parts, name=b"", order="<"):
    flags = element(6, struct.pack(order + "II", array_class, 0), order)
    shape = element(5, struct.pack(order + f"{len(dims)}i", *dims), order)
    return element(14, flags + shape + element(1, name, order) + b"".join(parts), order)


def make_meta(rows, *, order="<", utf16=False, compress=True):
    """A level 5 MAT-file as MATLAB writes it: scalars in the smallest type that holds them."""

    def number(value):
        kind, code = (2, "B") if value < 256 else (4, "H")
        return matrix(6, (1, 1), element(kind, struct.pack(order + code, value), order), order=order)

    def text(value):
        data = value.encode("utf-16-le" if order == "<" else "utf-16-be") if utf16 else value.encode()
        return matrix(4, (1, len(value)), element(4 if utf16 else 16, data, order), order=order)

    def row_vector(values):
        data = struct.pack(order + f"{len(values)}d", *values)
        return matrix(6, (1, len(values)), element(9, data, order), order=order)

    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    values = b""
    for number_, wnid, children in rows:
        values += number(number_) + text(wnid) + text("tench, Tinca tinca") + text("a fish, café")
        values += number(len(children)) + row_vector(children) + number(0)
    width = element(5, struct.pack(order + "i", 32), order)
    synsets = matrix(2, (len(rows), 1), width, element(1, names, order), values, name=b"synsets", order=order)
    other = matrix(6, (1, 1), element(9, struct.pack(order + "d", 1.5), order), name=b"version", order=order)
    if compress:
        packed = [zlib.compress(part) for part in (other, synsets)]
        other, synsets = (struct.pack(order + "II", 15, len(part)) + part for part in packed)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + (b"\0\1IM" if order == "<" else b"\1\0MI")
    return head + other + synsets


WNIDS = ["n02", "n30", "n01", "n200"]  # of ILSVRC2012_ID 1, 2, 3, 300
ROWS = [(1, "n02", []), (2, "n30", []), (3, "n01", []), (300, "n200", []), (301, "n00", [1, 2])]
TRUTH = [3, 1, 300, 2, 1]


@pytest.fixture
def devkit(tmp_path):
    folder = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (
            ("meta.mat", make_meta(ROWS)),
            ("ILSVRC2012_validation_ground_truth.txt", truth),
        ):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("utf16", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_the_devkit_is_read_in_every_form_matlab_writes(tmp_path, order, utf16, compress):
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(make_meta(ROWS, order=order, utf16=utf16, compress=compress))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, TRUTH)))
    kit = read_devkit(tmp_path / "kit")
    assert kit.classes == ["n01", "n02", "n200", "n30"]  # without n00, which has children
    assert kit.labels.tolist() == [0, 1, 2, 3, 1]


def test_val_images_get_the_labels_of_the_devkit_from_the_tar_and_from_a_flat_folder(devkit, tmp_path):
    files = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": f"image {i}".encode() for i in range(5)}
    shuffled = {name: files[name] for name in sorted(files, key=lambda name: files[name][::-1], reverse=True)}
    path = make_tar(tmp_path / "ILSVRC2012_img_val.tar", shuffled)
    flat = tmp_path / "val"
    flat.mkdir()
    for name, data in files.items():
        (flat / name).write_bytes(data)
    expected = [
        ("n01/ILSVRC2012_val_00000001.JPEG", 0, b"image 0"),
        ("n02/ILSVRC2012_val_00000002.JPEG", 1, b"image 1"),
        ("n02/ILSVRC2012_val_00000005.JPEG", 1, b"image 4"),
        ("n200/ILSVRC2012_val_00000003.JPEG", 2, b"image 2"),
        ("n30/ILSVRC2012_val_00000004.JPEG", 3, b"image 3"),
    ]
    for place in (path, flat):
        assert read_all(open_source(place, devkit=devkit)) == expected
        with pytest.raises(UserError, match=r"--devkit ILSVRC2012_devkit_t12\.tar\.gz"):
            open_source(place)
    (flat / "ILSVRC2012_val_00000006.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"no label for ILSVRC2012_val_00000006\.JPEG"):
        open_source(flat, devkit=devkit)


def test_a_devkit_that_is_damaged_missing_or_of_no_use_is_named(devkit, tree, tmp_path):
    val = make_tar(tmp_path / "val.tar", {"ILSVRC2012_val_00000001.JPEG": b"x"})
    with pytest.raises(UserError, match="does not exist"):
        open_source(val, devkit=tmp_path / "none.tar.gz")
    with pytest.raises(UserError, match="has no data/meta"):
        open_source(val, devkit=val)
    (tmp_path / "half.tar.gz").write_bytes(devkit.read_bytes()[:150])
    with pytest.raises(UserError, match="download it again"):
        open_source(val, devkit=tmp_path / "half.tar.gz")
    for end in (140, 300):
        data = tmp_path / f"kit{end}" / "data"
        data.mkdir(parents=True)
        (data / "meta.mat").write_bytes(make_meta(ROWS)[:end])
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
        with pytest.raises(UserError, match="damaged"):
            read_devkit(data.parent)
    with pytest.raises(UserError, match="leave it out"):
        open_source(tree, devkit=devkit)


# list files, shards, tables, datasets, stores


def test_a_list_file_takes_spaces_comments_and_integer_or_named_labels(tree, tmp_path):
    deep = f"{folder_rows(tree)[0][1]}/deep/a photo é.jpg"
    crossing = sorted((tree / "Zebra crossing").glob("*.JPEG"))[0]
    for labels, classes, indices in (
        (("7", "0"), [str(i) for i in range(8)], [7, 0]),
        (("fish", "cat"), ["cat", "fish"], [1, 0]),
    ):
        text = f"# train\n\n{deep}  {labels[0]}\n{crossing}\t{labels[1]}\r\n"
        (tmp_path / "list.txt").write_text(text, encoding="utf-8")
        source = open_source(tmp_path / "list.txt", root=tree)
        assert source.classes == classes and source.labels.tolist() == indices
        assert source.read(0).image == (tree / deep).read_bytes()
        assert source.read(1).image == crossing.read_bytes()
        assert source.name(0) == f"{classes[indices[0]]}/{deep}"
    beside = tree / "val.lst"
    beside.write_text(f"{deep} 0\n{deep} 1\n")
    assert len({open_source(beside).name(i) for i in range(2)}) == 2
    beside.unlink()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nolabel", "line 2: 'nolabel' is not a path and a label"),
        ("a.jpg cat", "line 2: the label 'cat' is not an integer"),
        ("a.jpg -1", "line 2: the label '-1'"),
        ("a.jpg 0", "line 2: a.jpg with label 0 is listed twice"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"a.jpg 0\n{line}\n")
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "list.txt")


def test_a_list_whose_first_file_is_not_there_says_where_it_looked(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    with pytest.raises(UserError, match=f"line 1: there is no a.jpg in {tmp_path}"):
        open_source(tmp_path / "list.txt")


def test_webdataset_shards_are_read_as_file_pattern_or_folder(tmp_path):
    for shard in range(3):
        make_tar(
            tmp_path / f"train-{shard:06d}.tar",
            {
                f"{shard}_0.cls": b"2\n",
                f"{shard}_0.jpg": b"a%d" % shard,
                f"{shard}_1.json": json.dumps({"label": 0}).encode(),
                f"{shard}_1.JPEG": b"b%d" % shard,
                f"{shard}_note.json": b"{}",
            },
        )
    (tmp_path / ".cache").mkdir()
    expected = []
    for shard in range(3):
        expected += [(f"2/{shard}_0.jpg", 2, b"a%d" % shard), (f"0/{shard}_1.jpeg", 0, b"b%d" % shard)]
    assert read_all(open_source(tmp_path)) == expected
    assert read_all(open_source(tmp_path / "train-{000000..000001}.tar")) == expected[:4]
    assert read_all(open_source(tmp_path / "train-*.tar")) == expected
    assert read_all(open_source(tmp_path / "train-000002.tar")) == expected[4:]
    (tmp_path / "classnames.txt").write_text("tench\ngold fish\nwhite shark\n")
    assert open_source(tmp_path).classes == ["tench", "gold fish", "white shark"]
    with pytest.raises(UserError, match=r"train-000003\.tar"):
        open_source(tmp_path / "train-{000000..000003}.tar")
    make_tar(tmp_path / "val-000000.tar", {"0.cls": b"0", "0.jpg": b""})
    with pytest.raises(UserError, match="shards of train, val"):
        open_source(tmp_path)


def test_webdataset_shards_that_each_count_from_zero_still_have_unique_names(tmp_path):
    for shard in range(2):
        make_tar(tmp_path / f"{shard:04d}.tar", {"0.cls": b"0", "0.jpg": b"%d" % shard})
    assert read_all(open_source(tmp_path)) == [("0/0000/0.jpg", 0, b"0"), ("0/0001/0.jpg", 0, b"1")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"7.cls": b"cat", "7.jpg": b""}, "sample 7: its .cls has no integer"),
        ({"7.cls": b"-1", "7.jpg": b""}, "negative"),
        ({"7.json": b"{}", "7.jpg": b""}, "sample 7: its .json has no integer"),
        ({"7.cls": b"0"}, "sample 7: no image"),
        ({"7.cls": b"0", "7.jpg": b"", "8.jpg": b""}, "sample 8: no label"),
    ],
)
def test_a_bad_shard_names_the_sample(tmp_path, members, message):
    with pytest.raises(UserError, match=message):
        open_source(make_tar(tmp_path / "s.tar", members))


HUB = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["ten/ch", "shark"]}}}}).encode()}


def make_table(path, *, struct_images=True, metadata=None, labels=(0, 1, 1, 0, 1), names=True):
    rows = [b"image %d of %s" % (i, path.name.encode()) for i in range(len(labels))]
    if struct_images:
        rows = [{"bytes": data, "path": f"x/{i}.JPEG" if names else None} for i, data in enumerate(rows)]
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)
    return path


def test_parquet_is_read_in_any_order_with_the_hub_s_class_names(tmp_path):
    (tmp_path / "data").mkdir()
    for part in range(2):
        make_table(tmp_path / "data" / f"train-0000{part}-of-00002.parquet", metadata=HUB)
    source = open_source(tmp_path)
    assert source.classes == ["ten/ch", "shark"] and source.labels.tolist() == [0, 1, 1, 0, 1] * 2
    for i in [0, 9, 5, 4, 3, 3, 8, 7, 0, 1, 2]:
        part, row = divmod(i, 5)
        assert source.read(i).image == b"image %d of train-0000%d-of-00002.parquet" % (row, part)
    assert source.name(0) == "ten_ch/00000000_0.JPEG"  # both files name theirs alike
    assert open_source(tmp_path / "data" / "train-00001-of-00002.parquet").name(1) == "shark/1.JPEG"
    make_table(tmp_path / "data" / "validation-00000-of-00001.parquet")
    with pytest.raises(UserError, match="train, validation"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "data" / "train-*.parquet")) == 10


def test_parquet_is_read_in_any_order_within_a_large_row_group(tmp_path):
    images = [b"%d" % i for i in range(400)]
    pq.write_table(pa.table({"image": images, "label": [0] * 400}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    for i in np.random.default_rng(0).permutation(400).tolist():
        assert source.read(i).image == images[i]


def test_a_damaged_parquet_page_is_an_error_of_its_rows_only(tmp_path):
    path = tmp_path / "a.parquet"
    images = [b"%d" % i for i in range(4)]
    table = pa.table({"image": images, "label": [0] * 4})
    pq.write_table(table, path, row_group_size=2, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[start : start + 10] = bytes(10)
    path.write_bytes(data)
    source = open_source(path)
    for _ in range(2):
        for i in (0, 1):
            with pytest.raises((OSError, ValueError)):
                source.read(i)
        assert [source.read(i).image for i in (2, 3)] == images[2:]


def test_parquet_with_plain_bytes_has_numbered_names_and_classes(tmp_path):
    source = open_source(make_table(tmp_path / "a.parquet", struct_images=False, labels=(0, 3)))
    assert source.classes == ["0", "1", "2", "3"] and source.name(1) == "3/00000001.JPEG"
    assert source.read(1) == (b"image 1 of a.parquet", 3)


def test_parquet_without_labels_or_columns_or_pyarrow_says_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="row 1: no label"):
        open_source(make_table(tmp_path / "test.parquet", labels=(0, -1)))
    pq.write_table(pa.table({"image": [b""], "label": pa.array([None], pa.uint8())}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match="row 0: no label"):
        open_source(tmp_path / "n.parquet")
    pq.write_table(pa.table({"img": [b""], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="columns img, label, and needs image and label"):
        open_source(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        open_source(tmp_path / "c.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'imagelmdb\[parquet\]'"):
        open_source(tmp_path / "test.parquet")


class Pairs:
    classes = ("cat", "dog")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_any_dataset_of_images_and_labels_is_a_source():
    image = Image.new("RGB", (4, 3), (9, 8, 7))
    source = DatasetSource(Pairs([(image, np.int64(1)), (np.asarray(image), 0), (image, 2), ("x.jpg", 0)]))
    assert source.classes == ["cat", "dog"] and len(source) == 4
    assert source.read(0) == (image, 1) and source.read(1) == (image, 0)
    with pytest.raises(ValueError, match="label 2 is outside the 2 classes"):
        source.read(2)
    with pytest.raises(ValueError, match="yields str"):
        source.read(3)
    with pytest.raises(UserError, match=r"pass classes="):
        DatasetSource([(image, 0)])
    assert DatasetSource([(image, 0)], classes=["cat"]).read(0).label == 0


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_another_store_is_a_source_of_its_bytes_or_pixels(tmp_path, encoding):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (5 + i, 7, 3), np.uint8) for i in range(3)]
    images = [p.tobytes() if encoding == "raw" else b"jpeg %d" % i for i, p in enumerate(pixels)]
    rows = []
    for i, image in enumerate(images):
        encoded = Encoded(image, b"", 7, 5 + i, "")
        rows.append(Row.pack(i, encoded, label=i % 2, name=f"c{i % 2}/{i}.JPEG"))
    (tmp_path / "shards").mkdir()
    for path in (tmp_path / "one.lmdb", tmp_path / "shards" / "shard-00000.lmdb", tmp_path / "data.mdb"):
        writer = ShardWriter(path, "conversion", source="folder x")
        writer.write(rows)
        writer.finish(Meta(encoding, ["c0", "c1"]))
        writer.close()
    found = [open_source(tmp_path / name) for name in ("one.lmdb", "shards", "")]
    for source in found:
        assert source.classes == ["c0", "c1"] and source.fingerprint() == found[0].fingerprint()
        assert [source.name(i) for i in range(len(source))] == ["c0/0.JPEG", "c1/1.JPEG", "c0/2.JPEG"]
        samples = [pickle.loads(pickle.dumps(source)).read(i) for i in range(3)]
        assert [s.label for s in samples] == [0, 1, 0]
        if encoding == "raw":
            assert all(np.array_equal(s.image, p) for s, p in zip(samples, pixels, strict=True))
        else:
            assert [s.image for s in samples] == images


# all of them


@pytest.fixture
def sources(tree, devkit, tmp_path):
    rows = folder_rows(tree)[1]
    tar = make_tar(tmp_path / "plain.tar", {name: data for name, _, data in rows})
    shard = make_tar(tmp_path / "wds.tar", {"0.cls": b"0", "0.jpg": b"x", "1.cls": b"1", "1.jpg": b"y"})
    (tmp_path / "list.txt").write_text("plain.tar 0\nwds.tar 1\n")
    val = make_tar(tmp_path / "v.tar", {"ILSVRC2012_val_00000001.JPEG": b"x"})
    paths = [tree, tar, shard, tmp_path / "list.txt", make_table(tmp_path / "t.parquet")]
    return [*map(open_source, paths), open_source(val, devkit=devkit), DatasetSource(Pairs([(b"x", 1)]))]


def read_in_child(source):
    return [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_source_reads_the_same_in_other_processes_and_threads_after_use_in_this_one(sources, method):
    here = [read_in_child(source) for source in sources]
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        assert list(pool.map(read_in_child, sources)) == here
    with ThreadPoolExecutor(8) as pool:
        for source, expected in zip(sources, here, strict=True):
            assert list(pool.map(source.read, range(len(source)))) == expected


def test_a_fingerprint_survives_moving_and_pickling_and_no_change_of_names(tree, tmp_path, sources):
    for source in sources:
        assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()
    assert len({source.fingerprint() for source in sources}) == len(sources)
    copy = tmp_path / "elsewhere"
    for name, _, data in folder_rows(tree)[1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    assert open_source(copy).fingerprint() == open_source(tree).fingerprint()
    moved = next(iter(copy.rglob("*.JPEG")))
    moved.rename(moved.with_name("x" + moved.name[1:]))
    assert open_source(copy).fingerprint() != open_source(tree).fingerprint()


def test_names_are_unique_and_begin_with_the_class(sources):
    for source in sources[:-1]:
        names = [source.name(i) for i in range(len(source))]
        assert len(set(names)) == len(names)
        assert all(name.split("/")[0] == source.classes[source.read(i).label] for i, name in enumerate(names))


def test_an_image_that_is_gone_or_cut_off_is_an_oserror_for_that_item_only(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"c/0.jpg": b"x" * 600, "c/1.jpg": b"y" * 600})
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:2300])
    assert source.read(0).image == b"x" * 600
    with pytest.raises(OSError, match="ends at byte 2300"):
        pickle.loads(pickle.dumps(source)).read(1)
    (tmp_path / "tree" / "c").mkdir(parents=True)
    (tmp_path / "tree" / "c" / "0.jpg").write_bytes(b"x")
    source = open_source(tmp_path / "tree")
    (tmp_path / "tree" / "c" / "0.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_mistakes_are_one_line_that_names_the_way_out(tmp_path, tree):
    def refuses(path, *messages, **options):
        with pytest.raises(UserError) as caught:
            open_source(path, **options)
        assert "\n" not in str(caught.value)
        for message in messages:
            assert message in str(caught.value)

    refuses(tmp_path / "none", "none does not exist")
    (tmp_path / "bare").mkdir()
    refuses(tmp_path / "bare", "no class folders and no images")
    (tmp_path / "bare" / "cat").mkdir()
    (tmp_path / "bare" / "dog").mkdir()
    (tmp_path / "bare" / "dog" / "1.png").write_bytes(b"x")
    refuses(tmp_path / "bare", "no image for the class cat in", "remove the empty folder")
    for split in ("train", "val"):
        (tmp_path / "splits" / split / "cat").mkdir(parents=True)
    refuses(tmp_path / "splits", "has the splits train, val", "splits/train")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.JPEG").write_bytes(b"x")
    refuses(tmp_path / "flat", "is flat: 1 images", "--devkit", "list file", "one folder for each class")
    (tmp_path / "empty.tar").write_bytes(b"")
    refuses(tmp_path / "empty.tar", "empty.tar is empty")
    refuses(make_tar(tmp_path / "none.tar", {}), "no images in")
    refuses(make_tar(tmp_path / "loose.tar", {"1.jpg": b"x"}), "has 1.jpg outside any class folder")
    refuses(make_tar(tmp_path / "hole.tar", {"cat": None, "dog/1.jpg": b"x"}), "no image for the class cat")
    whole = make_tar(tmp_path / "whole.tar", {"cat/1.jpg": b"x" * 5000, "cat/2.jpg": b"x" * 5000})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:8000])
    refuses(tmp_path / "cut.tar", "cut off", "copy or download it again")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tree, arcname=".")
    refuses(tmp_path / "a.tar.gz", "compressed", "gunzip")
    (tmp_path / "one.jpg").write_bytes(b"\xff\xd8\0")
    refuses(tmp_path / "one.jpg", "nothing to convert")
    os.mkfifo(tmp_path / "fifo")
    refuses(tmp_path / "fifo", "not a regular file")
    (tmp_path / "official").mkdir()
    make_tar(tmp_path / "official" / "ILSVRC2012_img_train.tar", {"n01.tar": b""})
    make_tar(tmp_path / "official" / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": b""})
    refuses(tmp_path / "official", "pass one of them", "ILSVRC2012_img_train.tar")
    refuses(tmp_path / "x-*.tar", "no file matches")
    refuses(tree, "a root goes with a list file", root=tmp_path)


@pytest.mark.parametrize("hard", [False, True])
def test_a_tar_of_links_asks_for_a_tar_of_files(tmp_path, hard):
    (tmp_path / "d" / "cat").mkdir(parents=True)
    (tmp_path / "d" / "cat" / "0.jpg").write_bytes(b"x")
    link = tmp_path / "d" / "cat" / "1.jpg"
    link.hardlink_to(tmp_path / "d" / "cat" / "0.jpg") if hard else link.symlink_to("0.jpg")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.add(tmp_path / "d", arcname=".")
    with pytest.raises(UserError, match="--dereference"):
        open_source(tmp_path / "links.tar")


def test_of_a_name_that_a_tar_holds_twice_the_last_counts(tmp_path):
    path = tmp_path / "twice.tar"
    make_tar(path, {"cat/1.jpg": b"old", "cat/2.jpg": b"two"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("cat/1.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    assert read_all(open_source(path)) == [("cat/1.jpg", 0, b"new"), ("cat/2.jpg", 0, b"two")]


def test_an_unreadable_folder_is_an_error_and_not_left_out(tree, tmp_path, monkeypatch):
    import os

    scan = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom no mode stops
    with pytest.raises(UserError, match=r"no permission to read .*deep"):
        open_source(tree)


@pytest.mark.parametrize("labels", [[0, -1], [0, 2]])
def test_labels_outside_the_classes_are_refused(labels):
    with pytest.raises(UserError, match=r"x has labels from .* for 2 classes"):
        ListedSource("x", classes=["a", "b"], labels=labels, names=Texts(["a/0", "b/1"]), reads=[])


# Hostile data: each is an error of one line, in little time and memory.


def refuses(path, *messages, **options):
    with pytest.raises(UserError) as caught:
        open_source(path, **options)
    assert str(caught.value).isprintable()
    for message in messages:
        assert message in str(caught.value)


def make_header(name, size, kind):
    """A tar header whose size is written as tarfile would not write it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


def in_base_256(number):
    return (number % 256**11 | (0xFF if number < 0 else 0x80) << 88).to_bytes(12, "big")


HOSTILE_TARS = {
    "a size of 2**70": make_header("cat/1.jpg", in_base_256(2**70), tarfile.REGTYPE),
    "a size below zero": make_header("cat/1.jpg", in_base_256(-512), tarfile.REGTYPE),
    "a long name of 2**70 bytes": make_header("x", in_base_256(2**70), tarfile.GNUTYPE_LONGNAME),
    "a long name of 2**32 bytes": make_header("x", in_base_256(2**32), tarfile.GNUTYPE_LONGNAME),
    "pax facts of a size below zero": make_header("x", in_base_256(-512), tarfile.XHDTYPE),
    "3000 long names": make_header("x", b"00000000000\0", tarfile.GNUTYPE_LONGLINK) * 3000,
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_a_tar_with_forged_headers_is_damaged(tmp_path, name):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(HOSTILE_TARS[name])
        file.truncate(1 << 33)  # with holes: it has the room that its headers ask for
    refuses(path, "x.tar is damaged, cut off or not a tar")


@pytest.mark.parametrize("nested", [False, True])
def test_a_damaged_header_in_the_middle_of_a_tar_does_not_hide_the_images_behind_it(tmp_path, nested):
    path = tmp_path / "x.tar"
    images = io.BytesIO()
    write_members(images, {f"{'' if nested else 'cat/'}{n}.jpg": b"x" * 600 for n in range(3)})
    if nested:
        make_tar(path, {"n01.tar": images.getvalue(), "n02.tar": images.getvalue()})
    else:
        path.write_bytes(images.getvalue())
    data = bytearray(path.read_bytes())
    data[512 * (4 if nested else 3) + 5] ^= 1  # in the name of the second image
    path.write_bytes(data)
    refuses(path, "x.tar is damaged", "no header of a file at byte")


@pytest.mark.parametrize("size", ["1" + "0" * 30, "-512"])
def test_a_pax_size_that_no_file_has_is_damage(tmp_path, size):
    info = tarfile.TarInfo("cat/1.jpg")
    info.pax_headers = {"size": size}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    refuses(tmp_path / "x.tar", "x.tar is damaged")


def write_devkit(path, meta, truth=b"1\n", **info):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in ((META, meta), (TRUTH_FILE, truth)):
            member = tarfile.TarInfo(f"kit/{name}")
            member.size = len(data)
            for key, value in info.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return path


def pack(data, times=1):
    """A compressed element of a MAT-file, in as many layers."""
    for _ in range(times):
        packed = zlib.compress(data)
        data = struct.pack("<II", 15, len(packed)) + packed
    return data


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
WIDE = matrix(2, (1, 1), element(5, struct.pack("<i", 1)), element(1, b"x" * 1000), name=b"synsets")
HOSTILE_METAS = {
    "a zlib bomb": HEAD + pack(bytes(65 << 20)),
    "many zlib bombs": HEAD + pack(bytes(33 << 20)) * 2,
    "nested zlib": HEAD + pack(make_meta(ROWS)[128:], times=50),
    "empty zlib": HEAD + pack(b""),
    "a thousand fields": HEAD + WIDE,
    "a large small element": HEAD + struct.pack("<II", 0xFFFF0001, 0) * 20,
    "an infinite number": make_meta([(1, "n01", [])], compress=False).replace(
        element(2, b"\1"), element(7, struct.pack("<f", float("inf")))
    ),
    "no variable": HEAD,
}


@pytest.mark.parametrize("name", HOSTILE_METAS)
def test_a_devkit_with_forged_facts_is_damaged(tmp_path, name):
    val = make_tar(tmp_path / "val.tar", {"ILSVRC2012_val_00000001.JPEG": b"x"})
    refuses(val, "download it again", devkit=write_devkit(tmp_path / "kit.tar.gz", HOSTILE_METAS[name]))


def test_a_devkit_that_unpacks_to_gigabytes_or_has_folders_for_files_is_refused(tmp_path):
    val = make_tar(tmp_path / "val.tar", {"ILSVRC2012_val_00000001.JPEG": b"x"})
    kit = write_devkit(tmp_path / "bomb.tar.gz", make_meta(ROWS), bytes(65 << 20))
    refuses(val, "more than 64 MiB", devkit=kit)
    refuses(
        val, "has no data/meta", devkit=write_devkit(tmp_path / "d.tar.gz", b"", b"", type=tarfile.DIRTYPE)
    )
    for truth in (b"9" * 5000, b"0", b"x"):
        kit = write_devkit(tmp_path / "truth.tar.gz", make_meta(ROWS), truth)
        refuses(val, "truth.tar.gz is damaged", devkit=kit)
    for part in (META, TRUTH_FILE):
        (tmp_path / "kit" / part).mkdir(parents=True)
    refuses(val, "has no data/meta", devkit=tmp_path / "kit")
    os.mkfifo(tmp_path / "fifo")
    refuses(val, "neither a file nor a folder", devkit=tmp_path / "fifo")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("cls", b"1" + b"0" * 20),
        ("cls", b"9" * 5000),
        ("cls", b"7.5"),
        ("json", b'{"label": 1%s}' % (b"0" * 20)),
        ("json", b'{"label": 7.5}'),
        ("json", b'{"label": Infinity}'),
        ("json", b'{"label": null}'),
        ("json", b"[" * 100_000),
        ("json", b'{"label": %s}' % (b"9" * 5000)),
    ],
)
def test_a_webdataset_label_that_no_class_can_have_is_named(tmp_path, suffix, text):
    make_tar(tmp_path / "s.tar", {f"7.{suffix}": text, "7.jpg": b""})
    refuses(tmp_path / "s.tar", "sample 7: its .")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1.jpg 0\n2.jpg " + b"9" * 5000, "line 2: the label '999"),
        (b"1.jpg 0\n2.jpg 4294967296", "line 2: the label '4294967296' is not a class number"),
        (b"1.jpg 0\n" + b"x" * 3000 + b"\0.jpg 0", "line 2: not a line of text"),
        (b"1.jpg 0\n" + b"x" * (1 << 17), "line 2: not a line of text"),
        (b"1.jpg \x1b[31m\n", "is not readable text"),
    ],
)
def test_a_list_with_a_hostile_line_is_refused_by_its_number(tmp_path, text, message):
    (tmp_path / "1.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"# a list\n" * 200 + text)
    refuses(tmp_path / "list.txt", message.replace("line 2", "line 202"))


def test_class_names_nested_too_deep_are_refused(tmp_path):
    make_tar(tmp_path / "s.tar", {"7.cls": b"0", "7.jpg": b""})
    for text in ("[" * 100_000, '{"0": 1}', '[["cat"]]', '"cat"'[:3]):
        (tmp_path / "classnames.json").write_text(text)
        refuses(tmp_path / "s.tar", "classnames.json has a list")


@pytest.mark.parametrize(
    ("kind", "label"), [("int64", 2**32), ("int64", 2**40 + 1), ("uint64", 2**64 - 1), ("uint32", 2**32 - 1)]
)
def test_a_parquet_label_that_no_class_can_have_is_named_by_its_row(tmp_path, kind, label):
    table = pa.table({"image": [b"a", b"b"], "label": pa.array([0, label], getattr(pa, kind)())})
    pq.write_table(table, tmp_path / "x.parquet")
    refuses(tmp_path / "x.parquet", f"row 1: label {label} is not a class number")


def test_unsigned_and_missing_parquet_labels_are_told_apart(tmp_path):
    for labels, message in (([1, 0], None), ([1, None], "row 1: no label")):
        table = pa.table({"image": [b"a", b"b"], "label": pa.array(labels, pa.uint64())})
        pq.write_table(table, tmp_path / "x.parquet")
        if message:
            refuses(tmp_path / "x.parquet", message)
        else:
            assert open_source(tmp_path / "x.parquet").labels.tolist() == labels


def test_a_nul_in_a_parquet_path_shifts_no_other_name(tmp_path):
    images = [{"bytes": make_jpeg(16, 16, i), "path": f"{'a' * i}\0{i}.png"} for i in range(3)]
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 0, 0])}), tmp_path / "x.parquet")
    convert(tmp_path / "x.parquet", tmp_path / "x.lmdb", workers=0)
    store = LMDBStore(tmp_path / "x.lmdb")
    assert [store.name(i) for i in range(3)] == ["0/\ufffd0.png", "0/a\ufffd1.png", "0/aa\ufffd2.png"]


def test_parquet_files_with_images_in_columns_of_different_kinds_are_read(tmp_path):
    make_table(tmp_path / "x-0.parquet", struct_images=True)
    make_table(tmp_path / "x-1.parquet", struct_images=False)
    source = open_source(tmp_path / "x-*.parquet")
    assert [bytes(source.read(i).image) for i in (0, 5)] == [
        b"image 0 of x-0.parquet",
        b"image 0 of x-1.parquet",
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": 7, "path": "x"}], "label": [0]}, "the column image is struct"),
        ({"image": ["text"], "label": [0]}, "the column image is string"),
        ({"image": [b"x"], "label": [0.5]}, "the column label is double"),
        ({"image": [b"x"], "label": [[0]]}, "the column label is list"),
        ({"image": pa.array([None] * 1_000_000, pa.binary()), "label": [0] * 1_000_000}, "1000000 rows in"),
    ],
)
def test_parquet_columns_of_another_type_or_of_nothing_but_rows_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    refuses(tmp_path / "x.parquet", message)


@pytest.mark.parametrize("names", ['"cat"', "[1, 2]", "{}", "[" * 100_000])
def test_class_names_of_the_hub_that_are_no_texts_do_not_count(tmp_path, names):
    text = '{"info": {"features": {"label": {"names": %s}}}}' % names  # noqa: UP031
    make_table(tmp_path / "x.parquet", metadata={"huggingface": text})
    assert open_source(tmp_path / "x.parquet").classes == ["0", "1"]


def test_a_null_image_is_an_error_of_its_row_only(tmp_path):
    images = pa.array([{"bytes": b"x", "path": "1.jpg"}, None])
    pq.write_table(pa.table({"image": images, "label": [0, 0]}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.read(0).image == b"x"
    with pytest.raises(ValueError, match="no image bytes"):
        source.read(1)


@pytest.mark.parametrize("label", [7.9, 2**40, -1, float("nan"), float("inf"), "x", None, np.float32(0.5)])
def test_a_dataset_label_that_is_no_class_number_is_an_error_of_its_item(label):
    class Items:
        classes = ["cat"]  # noqa: RUF012

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Image.new("RGB", (8, 8)), label

    with pytest.raises(DAMAGE):
        DatasetSource(Items()).read(0)


@pytest.mark.parametrize("labels", [np.array([0, 2**32]), np.array([0.0, 0.5])])
def test_labels_that_a_cast_would_change_are_refused(labels):
    with pytest.raises(UserError, match="x has labels from"):
        ListedSource("x", classes=["a", "b"], labels=labels, names=Texts(["a/0", "b/1"]), reads=[])


@pytest.mark.parametrize(
    "pattern", ["x-{0..999999999}.tar", "x-{0..9999}{0..9999}.tar", "x-{0..%s}.tar" % ("9" * 5000)]
)
def test_a_pattern_of_endless_files_is_refused(tmp_path, pattern):
    with pytest.raises((UserError, OSError)):
        open_source(tmp_path / pattern)


@pytest.mark.parametrize(
    "error", [OverflowError("x"), RecursionError("x"), MemoryError(), KeyError("x"), TypeError("x")]
)
def test_whatever_a_source_raises_for_an_item_is_that_item_s_error(tmp_path, error):
    class Raises(ListedSource):
        kind = "raises"

        def read_image(self, index):
            if index == 1:
                raise error
            return make_jpeg(16, 16, index)

    source = Raises("x", classes=["a"], labels=[0, 0], names=Texts(["a/0", "a/1"]), reads=[])
    report = convert(source, tmp_path / "x.lmdb", workers=1, skip_bad=True)
    assert report.count == 1 and [(bad.name, type(error).__name__ in bad.reason) for bad in report.bad] == [
        ("a/1", True)
    ]
