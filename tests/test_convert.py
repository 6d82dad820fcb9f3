"""From source to store: what is written, what is refused, what survives a kill."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from odd_files import make_odd_files
from PIL import Image
from torchvision.datasets import ImageFolder

from imagelmdb.errors import BadImageError, StoreError, UnfinishedStoreError, UserError
from imagelmdb.jpeg.index import IN_PLACE
from imagelmdb.sample import make_tree
from imagelmdb.store.convert import convert
from imagelmdb.store.encode import Encoding, encode_image
from imagelmdb.store.format import JOURNAL_PREFIX
from imagelmdb.store.lmdbfile.environment import open_environment
from imagelmdb.store.output import Output
from imagelmdb.store.reader import LMDBStore
from imagelmdb.store.sources import DatasetSource, Sample, Source, open_source
from imagelmdb.store.sources.place import look_at
from imagelmdb.store.verify import verify
from imagelmdb.store.writer import ShardWriter

ROOT = Path(__file__).parent.parent


def pixels_of(store: LMDBStore, index: int) -> np.ndarray:
    image = store[index].image
    if store.encoding == "raw":
        return image
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def folder2lmdb(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "folder2lmdb.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def read_journal(file: Path) -> list[bytes]:
    """The keys of an unfinished shard's journal."""
    try:
        return [key for key in open_environment(file).keys() if key.startswith(JOURNAL_PREFIX)]  # noqa: SIM118
    except StoreError:  # not even its first pages are there
        return []


@pytest.fixture
def odd_tree(tmp_path):
    """Two classes; one holds odd files, four of which are no images."""
    make_tree(tmp_path / "odd", classes=2, train=3, val=1, scale=0.2)
    folder = tmp_path / "odd" / "train"
    make_odd_files(sorted(folder.iterdir())[0])
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("how", [Encoding(), Encoding(tile=False), Encoding("raw")], ids=str)
def test_a_store_holds_the_pixels_labels_and_names_of_the_folder(tree, tmp_path, how, shards):
    report = convert(open_source(tree / "train"), tmp_path / "store", how=how, workers=0, shards=shards)
    folder = ImageFolder(tree / "train")
    store = LMDBStore(tmp_path / "store")
    assert report.complete and report.count == len(store) == len(folder)
    assert store.classes == folder.classes and store.class_to_idx == folder.class_to_idx
    assert store.labels.tolist() == folder.targets
    for index, (path, label) in enumerate(folder.samples):
        image = folder.loader(path)
        assert store[index].label == label
        assert store.name(index) == str(Path(path).relative_to(tree / "train"))
        assert tuple(store.sizes[index]) == image.size
        assert np.array_equal(pixels_of(store, index), np.asarray(image)), path
    assert verify(tmp_path / "store", workers=0) == []


def test_an_untiled_store_keeps_the_files_bytes(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s.lmdb", how=Encoding(tile=False), workers=0)
    store = LMDBStore(tmp_path / "s.lmdb")
    for index, (path, _) in enumerate(ImageFolder(tree / "train").samples):
        assert bytes(store[index].image) == Path(path).read_bytes()


def test_the_digest_depends_on_neither_workers_nor_shards_nor_layout(tree, tmp_path):
    source = open_source(tree / "train")
    digests = {
        convert(source, tmp_path / "a.lmdb", workers=0).digest,
        convert(source, tmp_path / "b", workers=2).digest,
        convert(source, tmp_path / "c", workers=1, shards=4).digest,
    }
    assert len(digests) == 1
    assert LMDBStore(tmp_path / "c").describe()["digest"] in digests
    assert convert(source, tmp_path / "d", workers=0, shuffle=True).digest not in digests


def test_shuffle_mixes_the_classes_and_keeps_every_image(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s", workers=0, shuffle=True, seed=3)
    store = LMDBStore(tmp_path / "s")
    assert (np.diff(store.labels) < 0).any()
    names = [store.name(i) for i in range(len(store))]
    folder = ImageFolder(tree / "train")
    labels = {str(Path(path).relative_to(tree / "train")): label for path, label in folder.samples}
    assert dict(zip(names, store.labels.tolist(), strict=True)) == labels


def test_max_size_shrinks_only_what_is_larger(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s", how=Encoding(max_size=110), workers=0)
    plain = ImageFolder(tree / "train")
    store = LMDBStore(tmp_path / "s")
    for index, (path, _) in enumerate(plain.samples):
        original = plain.loader(path)
        if max(original.size) <= 110:
            assert np.array_equal(pixels_of(store, index), np.asarray(original))
        else:
            assert max(store.sizes[index]) == 110
            ratio = original.width / original.height
            assert store.sizes[index][0] / store.sizes[index][1] == pytest.approx(ratio, rel=0.02)


def test_quality_makes_the_store_smaller(tree, tmp_path):
    source = open_source(tree / "train")
    lossless = convert(source, tmp_path / "a", workers=0)
    small = convert(source, tmp_path / "b", how=Encoding(quality=80), workers=0)
    assert small.image_bytes < 0.6 * lossless.image_bytes


def test_odd_files_are_reencoded_and_named_and_bad_ones_left_out_only_on_request(odd_tree, tmp_path):
    out = tmp_path / "store"
    first = folder2lmdb("--dataset", odd_tree, "-o", out, "-p", 1)
    assert first.returncode == 3
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    named = {Path(error["name"]).stem: error["reason"] for error in errors}
    assert set(named) == {"odd_truncated", "odd_empty", "odd_text", "odd_noise"}
    assert all(named.values())
    with pytest.raises(UnfinishedStoreError, match="once more"):
        len(LMDBStore(out))
    info = subprocess.run(
        [sys.executable, "-m", "imagelmdb", "info", "--json", str(out)], capture_output=True, text=True
    )
    assert json.loads(info.stdout)["complete"] is False

    second = folder2lmdb("--dataset", odd_tree, "-o", out, "-p", 1, "--skip-bad")
    assert second.returncode == 0, second.stderr
    assert ": 0 images in" not in first.stdout and "; 0 images in" in second.stdout  # nothing is redone
    assert "odd_cmyk" in second.stdout and "odd_png" in second.stdout
    (line,) = (line for line in second.stdout.splitlines() if "odd_progressive" in line)
    assert line.startswith("written anew without loss 1, progressive: ")
    store = LMDBStore(out)
    folder = ImageFolder(odd_tree)
    good = [path for path, _ in folder.samples if Path(path).stem not in named]
    assert [store.name(i) for i in range(len(store))] == [str(Path(p).relative_to(odd_tree)) for p in good]
    for index, path in enumerate(good):
        difference = pixels_of(store, index).astype(int) - np.asarray(folder.loader(path)).astype(int)
        lossless = not {"odd_cmyk", "odd_png"} & {Path(path).stem}
        assert np.abs(difference).mean() < (1e-9 if lossless else 1.5), path
    assert verify(out, workers=0) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["folder", "list"])
def test_a_fifo_a_socket_and_a_device_are_bad_files_and_none_is_waited_for(tree, tmp_path, monkeypatch, kind):
    folder = tmp_path / "train"
    shutil.copytree(tree / "train", folder)
    place = sorted(folder.iterdir())[0]
    os.mkfifo(place / "fifo.JPEG")
    (place / "device.JPEG").symlink_to("/dev/zero")
    monkeypatch.chdir(place)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.JPEG")  # the whole path may be too long for a socket
    source = open_source(folder)
    if kind == "list":
        names = [source.name(i) for i in range(len(source))]
        (tmp_path / "list.txt").write_text("".join(f"{name} {Path(name).parent}\n" for name in names))
        source = open_source(tmp_path / "list.txt", root=folder)
    report = convert(source, tmp_path / "s", workers=0, skip_bad=True)
    assert {Path(bad.name).name for bad in report.bad} == {"device.JPEG", "fifo.JPEG", "socket.JPEG"}
    assert {bad.reason for bad in report.bad} == {"not a regular file"}
    assert report.digest == convert(open_source(tree / "train"), tmp_path / "t", workers=0).digest


@pytest.mark.parametrize("options", [[], ["--skip-bad"]], ids=str)
def test_where_no_image_can_be_read_one_line_names_the_first_reasons(tmp_path, options):
    folder = tmp_path / "train"
    (folder / "cat").mkdir(parents=True)
    for number in range(5):
        (folder / "cat" / f"{number}.JPEG").write_bytes(b"" if number else b"no image")
    done = folder2lmdb("--dataset", folder, "-o", tmp_path / "s.lmdb", "-p", 2, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "no image could be read" in done.stderr and "--skip-bad" not in done.stderr
    assert "cat/0.JPEG: no image format that Pillow knows; cat/1.JPEG: empty file" in done.stderr
    errors_file = tmp_path / "s.errors.jsonl"
    assert f"all 5 in {errors_file}" in done.stderr and len(errors_file.read_text().splitlines()) == 5


def test_a_mended_file_takes_its_place_without_redoing_the_rest(tree, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(tree / "train", folder)
    victim = sorted(folder.rglob("*.JPEG"))[4]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:500])
    report = convert(open_source(folder), tmp_path / "s", workers=0)
    assert not report.complete and [Path(bad.name).name for bad in report.bad] == [victim.name]
    victim.write_bytes(whole)
    mended = convert(open_source(folder), tmp_path / "s", workers=0)
    assert mended.complete and mended.converted == 1
    assert not (tmp_path / "s" / "errors.jsonl").exists()
    assert mended.digest == convert(open_source(tree / "train"), tmp_path / "t", workers=0).digest


def test_a_finished_store_stays_unless_forced(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s", workers=0)
    before = (tmp_path / "s" / "data.mdb").read_bytes()
    refused = folder2lmdb("--dataset", tree / "val", "-o", tmp_path / "s")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--force" in refused.stderr
    assert (tmp_path / "s" / "data.mdb").read_bytes() == before
    forced = folder2lmdb("--dataset", tree / "val", "-o", tmp_path / "s", "--force", "-p", 0)
    assert forced.returncode == 0
    assert len(LMDBStore(tmp_path / "s")) == 12
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["data.mdb"]


def test_an_unfinished_conversion_is_not_continued_with_other_settings(odd_tree, tmp_path):
    assert not convert(open_source(odd_tree), tmp_path / "s", workers=0).complete
    with pytest.raises(UserError, match="other settings"):
        convert(open_source(odd_tree), tmp_path / "s", how=Encoding("raw"), workers=0)
    assert convert(open_source(odd_tree), tmp_path / "s", workers=0, skip_bad=True).complete


def test_two_conversions_of_one_output_exclude_each_other(tree, tmp_path):
    with (
        Output(tmp_path / "s", shards=1, conversion="x", force=False),
        pytest.raises(UserError, match="another conversion"),
    ):
        convert(open_source(tree / "train"), tmp_path / "s", workers=0)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_store_to_convert_is_not_the_output(tree, tmp_path, force):
    convert(open_source(tree / "train"), tmp_path / "s.lmdb", workers=0)
    before = (tmp_path / "s.lmdb").read_bytes()
    result = folder2lmdb("--dataset", tmp_path / "s.lmdb", "-o", tmp_path / "s.lmdb", *force)
    assert result.returncode == 2 and "is the store to convert" in result.stderr
    assert (tmp_path / "s.lmdb").read_bytes() == before


def test_a_store_does_not_go_into_the_folder_it_is_made_from(tree):
    with pytest.raises(UserError, match="outside"):
        convert(open_source(tree / "train"), tree / "train" / "store", workers=0, force=True)
    assert not (tree / "train" / "store").exists()


def test_a_small_file_that_is_no_lmdb_stays(tree, tmp_path):
    notes = tmp_path / "notes.lmdb"
    notes.write_text("my precious notes")
    with pytest.raises(UserError, match=r"notes\.lmdb.*--force"):
        convert(open_source(tree / "train"), notes, workers=0)
    assert notes.read_text() == "my precious notes"


@pytest.mark.parametrize("left", [b"", bytes(4096)], ids=["empty", "zeros"])
def test_a_shard_that_was_being_made_when_the_kill_came_is_made_anew(odd_tree, tmp_path, left):
    convert(open_source(odd_tree), tmp_path / "s", workers=0, shards=3)
    (tmp_path / "s" / "shard-00001.lmdb").write_bytes(left)
    report = convert(open_source(odd_tree), tmp_path / "s", workers=0, shards=3, skip_bad=True)
    assert report.digest == convert(open_source(odd_tree), tmp_path / "t", workers=0, skip_bad=True).digest


def test_a_rerun_by_a_release_with_another_tile_index_does_not_mix_the_two(odd_tree, tmp_path, monkeypatch):
    assert not convert(open_source(odd_tree), tmp_path / "s", workers=0).complete
    monkeypatch.setattr("imagelmdb.store.convert.IN_PLACE", IN_PLACE + 1)
    with pytest.raises(UserError, match="unfinished conversion of another source or with other settings"):
        convert(open_source(odd_tree), tmp_path / "s", workers=0)


def test_a_source_need_not_say_what_most_sources_say(tmp_path):
    class Greys(Source):
        """Two images and nothing that has a default."""

        description, classes = "greys", ["grey"]

        def __len__(self) -> int:
            return 2

        def name(self, index: int) -> str:
            return f"grey/{index}.png"

        def read(self, index: int) -> Sample:
            return Sample(Image.new("RGB", (8, 8), (index, index, index)), 0)

        def fingerprint(self) -> str:
            return "greys"

    report = convert(Greys(), tmp_path / "s.lmdb", workers=0)
    assert report.complete and LMDBStore(report.path).encoding == "jpeg"
    assert Greys.takes == () and Greys.open_at(look_at(tmp_path)) is None


def test_force_replaces_a_damaged_store(tree, tmp_path):
    convert(open_source(tree / "train"), tmp_path / "s.lmdb", workers=0)
    (tmp_path / "s.lmdb").write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(UserError, match="--force"):
        convert(open_source(tree / "train"), tmp_path / "s.lmdb", workers=0)
    assert convert(open_source(tree / "train"), tmp_path / "s.lmdb", workers=0, force=True).complete


def test_a_kill_between_two_shards_last_transactions_changes_nothing(odd_tree, tmp_path, monkeypatch):
    whole = convert(open_source(odd_tree), tmp_path / "whole", workers=0, shards=2, skip_bad=True)

    def die(self, meta, finish=ShardWriter.finish):
        if meta.shard == 1:
            raise KeyboardInterrupt
        return finish(self, meta)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "finish", die)
        convert(open_source(odd_tree), tmp_path / "s", workers=0, shards=2, skip_bad=True)
    again = convert(open_source(odd_tree), tmp_path / "s", workers=0, shards=2)
    assert again.complete and again.digest == whole.digest
    assert LMDBStore(tmp_path / "s").describe() | {"path": ""} == LMDBStore(whole.path).describe() | {
        "path": ""
    }
    assert (tmp_path / "s" / "errors.jsonl").read_text() == (tmp_path / "whole" / "errors.jsonl").read_text()


def test_another_dataset_of_the_same_length_is_no_resume(tmp_path):
    class Squares(list):
        classes = ("a", "b")

    def squares(shade, broken):
        items = [(Image.new("RGB", (8, 8), (shade, i, 0)), i % 2) for i in range(6)]
        return Squares([*items[:5], (None, 0)] if broken else items)

    assert not convert(DatasetSource(squares(0, broken=True)), tmp_path / "s", workers=0).complete
    with pytest.raises(UserError, match="another source"):
        convert(DatasetSource(squares(200, broken=False)), tmp_path / "s", workers=0)


def test_damaged_entropy_data_is_bad_and_stray_bytes_between_markers_are_not(tree, tmp_path):
    whole = sorted((tree / "train").rglob("*.JPEG"))[0].read_bytes()
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for number in range(40):
        damaged = bytearray(whole)
        at = rng.randrange(len(whole) // 2, len(whole) - 2)
        damaged[at : at + 2] = b"\xa5\x5a"
        (folder / f"damaged{number}.JPEG").write_bytes(damaged)
    (folder / "stray.JPEG").write_bytes(whole[:-2] + b"\x00\x00" + whole[-2:])
    report = convert(open_source(tmp_path / "train"), tmp_path / "s", workers=0)
    reported = {Path(item.name).stem for item in [*report.bad]} | {
        Path(name).stem for name, _ in report.reencoded
    }
    # What libjpeg sees as damaged is either named as bad or not stored as it is.
    for file in folder.glob("damaged*"):
        try:
            simplejpeg.decode_jpeg(file.read_bytes(), "RGB", strict=True)
        except ValueError:
            assert file.stem in reported, file
    assert "stray" not in reported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{tmp}/nowhere", "-o", "{tmp}/out"], "nowhere"),
        (["--dataset", "{tmp}/empty", "-o", "{tmp}/out"], "empty"),
        (["--dataset", "{tmp}/hollow", "-o", "{tmp}/out"], "b"),
        (["--dataset", "{tree}/train"], "-o STORE"),
        (["--dataset", "{tree}/train", "-f", "{tree}", "-o", "{tmp}/out"], "--dataset PATH -o STORE"),
        (["-f", "{tree}"], "-s train"),
        (
            ["--dataset", "{tree}/train", "-o", "{tmp}/out", "--encoding", "raw", "--quality", "90"],
            "--quality",
        ),
        (["--dataset", "{tree}/train", "-o", "{tmp}/full"], "is not a store"),
        (["--dataset", "{tree}/train", "-o", "{tmp}/out", "--shards", "0"], "0 shards"),
        (["--dataset", "{tree}/train", "-o", "{tmp}/full/thesis.tex/out"], "cannot write"),
        (["--dataset", "{tree}/train", "-o", "{tmp}/out", "-s", "train"], "-s and --to_dir go with -f"),
        (["-f", "{tree}", "-s", "train/n01440007"], "the name of one folder"),
        (["--dataset", "{tree}/train", "-o", "{tmp}/out", "--workers", "many"], "invalid int value"),
        (["--dataset", "{tree}/train", "-o", "{tmp}/out", "--shuffle", "--seed", "-1"], "seed -1"),
    ],
)
def test_a_mistake_is_one_line_and_touches_nothing(tree, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    for name, files in {"a": ["x.jpg"], "b": []}.items():
        (tmp_path / "hollow" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "hollow" / name / file).write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    result = folder2lmdb(*[a.format(tmp=tmp_path, tree=tree) for a in arguments])
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "store"),
    [
        (["--dataset", "{tree}/train", "-o", "{tmp}/train-lmdb/"], "train-lmdb/data.mdb"),
        (["-f", "{tmp}/data", "-s", "train"], "data/train.lmdb"),
        (
            ["--from_dir", "{tree}", "--to_dir", "{tmp}", "--split", "train", "--save-as", "jpeg"],
            "train.lmdb",
        ),
        (["--from_dir", "{tree}", "--to_dir", "{tmp}", "--split", "val", "--save-as", "numpy"], "val.lmdb"),
    ],
)
def test_the_command_lines_that_people_bring_work_as_written(tree, tmp_path, arguments, store):
    (tmp_path / "data").symlink_to(tree)
    result = folder2lmdb(*[a.format(tmp=tmp_path, tree=tree) for a in arguments], "-p", 1)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / store).is_file()
    assert LMDBStore(tmp_path / store).encoding == ("raw" if "numpy" in arguments else "jpeg")
    (tree / "train.lmdb").unlink(missing_ok=True)


def test_a_conversion_killed_at_any_moment_goes_on_to_the_same_store(tree, tmp_path):
    """20 kills at random moments; KILLS in the environment asks for more."""
    many = tmp_path / "many"
    shutil.copytree(tree / "train", many)
    for file in list(many.rglob("*.JPEG")):
        for copy in range(10):
            os.link(file, file.with_name(f"{file.stem}_{copy}.JPEG"))
    one = sorted(many.rglob("*.JPEG"))[0]
    encode_image(one.read_bytes(), Encoding())  # compiled, so that kills fall into the work
    started = time.monotonic()
    whole = convert(open_source(many), tmp_path / "whole", workers=2, shards=2)
    duration = time.monotonic() - started
    code = (
        "import sys, imagelmdb.store.convert as c\n"
        "from imagelmdb.store.encode import Encoding, encode_image\n"
        "from imagelmdb.store.sources import open_source\n"
        "c._COMMIT_BYTES = 50_000\n"  # many transactions, so that kills fall into and between them
        f"encode_image(open({str(one)!r}, 'rb').read(), Encoding())\n"
        "print('started', flush=True)\n"
        f"c.convert(open_source({str(many)!r}), {str(tmp_path / 's')!r}, workers=2, shards=2)\n"
    )
    rng = random.Random(time.time_ns())
    partial = 0
    for _ in range(int(os.environ.get("KILLS", "20"))):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(rng.random() * duration) == 0
        process.kill()
        process.wait()
        facts = {"complete": False}
        with contextlib.suppress(StoreError):
            facts = LMDBStore(tmp_path / "s").describe()
        if facts["complete"]:
            assert facts["digest"] == whole.digest
            shutil.rmtree(tmp_path / "s")
        else:
            partial += any(len(read_journal(file)) for file in (tmp_path / "s").glob("shard-*"))
    convert(open_source(many), tmp_path / "s", workers=2, shards=2)
    assert LMDBStore(tmp_path / "s").describe()["digest"] == whole.digest
    assert verify(tmp_path / "s", workers=0) == []
    assert partial  # or every kill came too late to tell anything


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process group")
def test_ctrl_c_ends_in_one_line_and_leaves_no_process_behind(tmp_path):
    make_tree(tmp_path / "t", classes=2, train=150, val=1, scale=0.5)
    command = [sys.executable, str(ROOT / "folder2lmdb.py"), "--dataset", str(tmp_path / "t" / "train")]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "s"), "--encoding", "raw"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    while not (tmp_path / "s" / "data.mdb").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1].startswith("interrupted") and "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):  # the whole group is gone
        os.killpg(process.pid, 0)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small tmpfs: Linux, root")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_with_room(tree, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)])
    if mount.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        arguments = ["--dataset", tree / "train", "-o", disk / "s", "-p", 1, "--encoding", "raw"]
        full = folder2lmdb(*arguments)
        assert full.returncode == 4, full.stderr
        assert full.stderr.strip().count("\n") == 0 and "no room" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert folder2lmdb(*arguments).returncode == 0
        assert verify(disk / "s", workers=0) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_images_larger_than_libjpeg_takes_are_bad_and_those_just_below_are_stored():
    def encode(width: int, kind: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (width, 4), "red").save(out, kind)
        return out.getvalue()

    for kind in ("JPEG", "PNG"):
        stored = encode_image(encode(65480, kind), Encoding())
        assert simplejpeg.decode_jpeg_header(stored.image)[:2] == (4, 65480)
    with pytest.raises(BadImageError, match="Maximum supported image dimension"):
        encode_image(encode(66000, "PNG"), Encoding())


@pytest.mark.parametrize(("every_seconds", "lines"), [("0.05", range(2, 5)), ("30", range(1))])
def test_progress_in_a_pipe_is_a_line_now_and_then(every_seconds, lines):
    code = (
        "import sys, time, imagelmdb.parallel as p\n"
        "p._LINE_EVERY_SECONDS = float(sys.argv[1])\n"
        "with p.make_bar(30, show=True) as bar:\n"
        "    for _ in range(20): time.sleep(0.01), bar.update(), bar.set_postfix_str('7.5 MB/s', False)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, every_seconds], capture_output=True, cwd=ROOT)
    assert run.stderr.count(b"\n") in lines, run.stderr
    assert run.stderr.count(b"/30 images, ") == run.stderr.count(b"7.5 MB/s, ") == run.stderr.count(b"\n")


def test_what_only_recoding_needs_is_not_imported_by_default(tmp_path):
    make_tree(tmp_path, classes=2, train=3, val=1, scale=0.5)
    tree = tmp_path / "train"
    code = f"""
import sys
from imagelmdb import convert, make_train_loader
from imagelmdb.store.verify import verify
convert({str(tree)!r}, {str(tmp_path / "s.lmdb")!r})
assert verify({str(tmp_path / "s.lmdb")!r}) == []
loader = make_train_loader({str(tmp_path / "s.lmdb")!r}, batch_size=5)
assert sum(len(labels) for _, labels in loader.epoch(0)) == 5
print([name for name in sys.modules if "recode" in name])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr
