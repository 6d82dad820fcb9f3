"""export: a store's images as files, whatever their names are; draw_sheet: some of them on one picture."""

import io
import tarfile
import time
from pathlib import Path

import lmdb
import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jpegs import make_jpeg
from stores import make_tree

from imagelmdb.errors import UserError
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.export import as_file_name, draw_sheet, export, name_folders
from imagelmdb.store.format import Meta
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import open_source
from imagelmdb.store.verify import verify
from imagelmdb.store.writer import Row, ShardWriter

HOSTILE = [
    "..",
    ".",
    "",
    "/",
    "\0",
    "a\0b",
    "../../x",
    "C:\\x",
    "\x1b[31m",
    "a\nb",
    "\u202e",
    "x" * 5000,
    ".bashrc",
]


def write_named(path: Path, classes: list[str], names: list[str], *, encoding: str = "jpeg") -> LMDBStore:
    """A store with one record for each name, all of the last class."""
    writer = ShardWriter(path, "test", source="test")
    for number, name in enumerate(names):
        encoded = encode_image(make_jpeg(16, 16, number), Encoding(encoding))
        writer.write([Row.pack(number, encoded, label=len(classes) - 1, name=name)])
    writer.finish(Meta(encoding, classes, total=len(names)))
    writer.close()
    return LMDBStore(path)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_every_image_becomes_a_file_in_its_class_folder_whatever_the_names_are(tmp_path, encoding):
    classes = [*HOSTILE, "cat"]
    names = [f"cat/{name}" for name in HOSTILE] + ["cat/1.jpg", "cat/deep/1.jpg", "1.jpg"]
    store = write_named(tmp_path / "s.lmdb", classes, names, encoding=encoding)
    assert export(store, tmp_path / "inner" / "out") == len(names)
    assert [entry.name for entry in (tmp_path / "inner").iterdir()] == ["out"]
    assert [folder.name for folder in (tmp_path / "inner" / "out").iterdir()] == ["cat"]
    files = list((tmp_path / "inner" / "out" / "cat").iterdir())
    assert len(files) == len(names) and all(file.name.isprintable() for file in files)
    if encoding == "raw":
        assert {file.suffix for file in files} == {".png"}


def test_a_folder_for_each_class_that_has_images_even_if_the_name_is_none(tmp_path):
    for number, name in enumerate(HOSTILE):
        store = write_named(tmp_path / f"{number}.lmdb", ["a", name], ["1.jpg"])
        export(store, tmp_path / str(number) / "out")
        ((folder,),) = [list(folder.iterdir()) for folder in (tmp_path / str(number)).iterdir()]
        assert folder.name.isprintable() and [file.name for file in folder.iterdir()] == ["1.jpg"]


def test_folders_of_classes_differ_even_if_their_names_do_not():
    assert name_folders(["a", "b"]) == ["a", "b"]
    assert name_folders(["a", "b", "a"]) == ["a_0", "b", "a_2"]
    for classes in (["a", "a", "a_1"], ["..", ".", "_"], ["a/b", "a_b", "a\\b"]):
        assert len(set(name_folders(classes))) == 3


def test_many_classes_are_named_in_seconds():
    """Here 100,000; a million take 3 s. Comparing each name with all others would take minutes."""
    began = time.process_time()
    assert len(set(name_folders([str(label % 1000) for label in range(100_000)]))) == 100_000
    assert time.process_time() - began < 5


def test_plain_names_stay_as_they_are():
    for name in ("n01440764_10026.JPEG", "a photo é.jpg", "猫.png"):
        assert as_file_name(name) == name


def test_the_output_must_be_empty(tmp_path):
    store = write_named(tmp_path / "s.lmdb", ["cat"], ["cat/1.jpg"])
    with pytest.raises(UserError, match="not an empty folder"):
        export(store, tmp_path)


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 1_000_000])
def test_a_sheet_is_drawn_whatever_the_class_is_called(tmp_path, name):
    assert draw_sheet(write_named(tmp_path / "s.lmdb", [name], ["x"])).width > 100


def write_sources(folder: Path) -> tuple[list[bytes], dict[str, Path]]:
    """The same files as a folder, a tar, WebDataset shards and parquet."""
    tree = make_tree(folder / "tree", {"a": 3, "b": 2})
    files = sorted(tree.glob("*/*"))
    with tarfile.open(folder / "tree.tar", "w") as archive:
        archive.add(tree, "train")
    with tarfile.open(folder / "web-000000.tar", "w") as archive:
        for number, file in enumerate(files):
            archive.add(file, f"{number:06d}.jpg")
            label = tarfile.TarInfo(f"{number:06d}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"%d" % (file.parent.name == "b")))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [int(file.parent.name == "b") for file in files]
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "web.parquet")
    paths = {"folder": tree, "tar": folder / "tree.tar"}
    paths |= {"webdataset": folder / "web-000000.tar", "parquet": folder / "web.parquet"}
    return [file.read_bytes() for file in files], paths


@pytest.mark.parametrize("kind", ["folder", "tar", "webdataset", "parquet"])
def test_export_gives_back_the_very_files_of_every_source(tmp_path, kind):
    files, paths = write_sources(tmp_path)
    convert(paths[kind], tmp_path / "s.lmdb")
    export(LMDBStore(tmp_path / "s.lmdb"), tmp_path / "out")
    assert sorted(file.read_bytes() for file in (tmp_path / "out").glob("*/*")) == sorted(files)


HOWS = {
    "default": Encoding(),
    "recode": Encoding(recode=True),
    "no-tile": Encoding(tile=False),
    "quality": Encoding(quality=80, max_size=60),
    "raw": Encoding("raw"),
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_verify_compares_a_store_with_its_source(tmp_path, how):
    _, paths = write_sources(tmp_path)
    store = convert(paths["tar"], tmp_path / "s.lmdb", how=how).path
    assert verify(store, source=open_source(paths["tar"])) == []
    assert verify(store, source=open_source(paths["folder"])) == []
    changed, other = sorted(paths["folder"].glob("*/*"))[1:3]
    changed.write_bytes(other.read_bytes())
    (problem,) = verify(store, source=open_source(paths["folder"]))
    assert problem.endswith(f"differs from a/{changed.name} in folder {paths['folder']}")
    changed.rename(changed.with_name("other.JPEG"))
    problems = verify(store, source=open_source(paths["folder"]))
    assert [problem.partition(": ")[2] or problem for problem in problems] == [
        f"{store} lacks 1 images of folder {paths['folder']}, such as a/other.JPEG",
        f"a/{changed.name} is not in folder {paths['folder']}",
    ]


def test_another_tools_database_cannot_be_compared_with_a_source(tmp_path):
    _, paths = write_sources(tmp_path)
    with lmdb.open(str(tmp_path / "old.lmdb"), subdir=False) as old, old.begin(write=True) as transaction:
        transaction.put(b"0", msgpack.packb([make_jpeg(9, 9), 0]))
    with pytest.raises(UserError, match="was written by another tool"):
        verify(tmp_path / "old.lmdb", source=open_source(paths["folder"]))


def test_verify_finds_an_image_that_a_store_of_shards_lacks(tmp_path):
    """Two files were skipped, and one more is in the source now."""
    _, paths = write_sources(tmp_path)
    for name in ("x", "y"):
        (paths["folder"] / "a" / f"{name}.JPEG").write_bytes(b"no image")
    store = convert(paths["folder"], tmp_path / "s", shards=2, skip_bad=True).path
    assert verify(store, source=open_source(paths["folder"])) == []
    (paths["folder"] / "b" / "z.JPEG").write_bytes(make_jpeg(20, 20))
    (problem,) = verify(store, source=open_source(paths["folder"]))
    assert "lacks 3 images of folder" in problem
