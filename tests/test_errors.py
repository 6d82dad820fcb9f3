"""A mistake is one line that is safe to print, whatever names it quotes and wherever the output goes."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from stores import make_tree, write_store

from imagelmdb.errors import BadImageError, StoreError, UserError, describe, printable, run_command

ROOT = Path(__file__).parent.parent
ESCAPES = "\x1b]0;title\x07\x1b[31mred\x9b2J\r\n\u202egpj.1\udce9"


def run(*words: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | options
    return subprocess.run(command, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose classes and names have escape sequences in them."""
    folder = tmp_path_factory.mktemp("store")
    tree = make_tree(folder / "tree", {"a\x1b[31m": 2, "käse": 1})
    for file in list((tree / "a\x1b[31m").iterdir()):
        file.rename(file.with_name(f"\x1b[2J{file.name}"))
    return write_store(tree, folder / "s.lmdb")


def test_every_character_that_does_something_is_escaped_and_all_others_stay():
    assert printable(ESCAPES).isprintable()
    assert printable("\x1b[31m") == "\\x1b[31m" and printable("a\nb") == "a\\nb"
    assert printable("Käse 猫 a\\b") == "Käse 猫 a\\b" == printable(printable("Käse 猫 a\\b"))


@pytest.mark.parametrize("kind", [UserError, StoreError, BadImageError])
def test_the_text_of_a_mistake_is_printable_and_travels_between_processes(kind, capfd):
    error = pickle.loads(pickle.dumps(kind(ESCAPES)))
    assert str(error) == printable(ESCAPES)
    assert run_command(lambda: (_ for _ in ()).throw(error)) == 2
    assert capfd.readouterr().err == f"error: {printable(ESCAPES)}\n"


def test_what_a_library_says_becomes_one_short_line():
    assert describe(KeyError("x")) == "KeyError: 'x'" and describe(MemoryError()) == "MemoryError"
    assert len(describe(ValueError("a\n" * 5000))) < 400


@pytest.mark.parametrize("command", ["info", "verify", "view"])
def test_names_in_a_store_reach_the_terminal_escaped(store, tmp_path, command):
    damaged = tmp_path / "damaged.lmdb"
    data = bytearray(store.read_bytes())
    if command == "verify":  # its lines name the records
        for at in range(data.index(b"\xff\xd8\xff") + 700, len(data), 5000):
            data[at] ^= 1
    damaged.write_bytes(data)
    output = ["-o", tmp_path / "\x1b[31m.png"] if command == "view" else []
    done = run("-m", "imagelmdb", command, damaged, *output)
    assert "\\x1b[" in done.stdout, done
    assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())


def test_a_conversion_lists_bad_files_escaped(tmp_path):
    tree = make_tree(tmp_path / "tree", {"a": 1})
    (tree / "a" / "\x1b[2J.jpg").write_bytes(b"no image")
    done = run("folder2lmdb.py", "--dataset", tree, "-o", tmp_path / "s.lmdb")
    assert done.returncode == 3 and "a/\\x1b[2J.jpg: " in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "words", [["main.py", "--help"], ["-m", "imagelmdb", "--help"], ["-m", "imagelmdb", "info"]]
)
def test_a_reader_that_leaves_ends_the_output_without_a_word(words, store):
    read, write = os.pipe()
    os.close(read)
    done = run(*words, *([store] if words[-1] == "info" else []), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_finds_no_room_is_one_line_and_code_4(store):
    with Path("/dev/full").open("w") as full:
        done = run("-m", "imagelmdb", "info", store, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1) and "No space left" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_beyond_the_terminal_s_encoding_are_escaped(store, encoding):
    done = run("-m", "imagelmdb", "info", store, env=os.environ | {"PYTHONIOENCODING": encoding}, text=False)
    name = "k\\xe4se" if encoding == "ascii" else "käse"
    assert done.returncode == 0 and name.encode(encoding) in done.stdout


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path):
    tree = make_tree(tmp_path / "tree", {"a": 4}, size=(300, 300))
    for limit in (4 << 10, 300 << 10):
        done = run(
            *("folder2lmdb.py", "--dataset", tree, "-o", tmp_path / f"{limit}.lmdb", "--encoding", "raw"),
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 4 and done.stderr.count("\n") == 1 and "no room" in done.stderr, done


def test_a_lack_of_memory_is_one_line(capfd):
    def fill():
        raise MemoryError

    assert run_command(fill) == 2
    assert capfd.readouterr().err.startswith("error: not enough memory")
