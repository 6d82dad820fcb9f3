"""What `from imagelmdb import ...` gives, and what `import imagelmdb` costs."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import imagelmdb
from imagelmdb.store.reader import LMDBStore

ROOT = Path(__file__).parent.parent


def test_import_loads_nothing_but_the_package_itself():
    code = "import sys; before = {*sys.modules}; import imagelmdb; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"torch", "numpy", "numba", "PIL", "lmdb", "yaml", "dataclasses", "argparse"}
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}
    assert [name for name in done.stdout.split() if name.startswith("imagelmdb")] == ["imagelmdb"]


@pytest.mark.parametrize("name", imagelmdb.__all__)
def test_each_name_can_be_imported_and_is_listed(name):
    value = getattr(imagelmdb, name)
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert name in dir(imagelmdb)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = imagelmdb.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        from imagelmdb import nonsense  # noqa: F401


def test_convert_takes_a_path(tree, tmp_path):
    report = imagelmdb.convert(tree / "val", tmp_path / "a.lmdb", workers=0)
    assert report.complete and len(LMDBStore(tmp_path / "a.lmdb")) == 12
    assert imagelmdb.convert(str(tree / "val"), tmp_path / "b.lmdb", workers=0).digest == report.digest


def test_folder2lmdb_offers_the_same_dataset():
    from folder2lmdb import ImageFolderLMDB

    assert ImageFolderLMDB is imagelmdb.ImageFolderLMDB


def test_type_checkers_find_the_packages_types():
    assert (ROOT / "imagelmdb/py.typed").is_file()
    assert 'imagelmdb = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
