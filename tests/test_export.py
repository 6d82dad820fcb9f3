"""export: a store's images as files, whatever their names are; draw_sheet: some of them on one picture."""

import time
from pathlib import Path

import pytest
from jpegs import make_jpeg

from imagelmdb.errors import UserError
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.export import as_file_name, draw_sheet, export, name_folders
from imagelmdb.store.format import Meta
from imagelmdb.store.reader import LMDBStore
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
