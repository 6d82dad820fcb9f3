"""The pages of an LMDB file as numpy arrays, and the B-trees in them, read without liblmdb.

All nodes of a level are read at once, so a check of 1.28 M records takes 0.4 s. The layout is data version 1
of LMDB 0.9, as 64-bit little-endian machines write it. The names are those of mdb.c:

    page         u64 pgno; u16 pad, flags, lower, upper; u16 node offsets up to `lower`; nodes from `upper`
    branch node  u16 lo, hi, top (together the child's pgno), key size; key
    leaf node    u16 lo, hi (the size of the data), flags, key size; key; data, or the pgno of overflow pages

Example: a leaf page of 4096 bytes, number 5, with the single entry b"key" -> b"value":

    at 0     5 (pgno), 0 (pad), 2 (leaf), 18 (lower: a header of 16 and one offset), 4080 (upper)
    at 16    4080, the offset of the node
    at 4080  5, 0 (the data has 5 bytes), 0 (data is here), 3 (key size), "key", "value"

A value that does not fit into a page with others is on overflow pages: a run of pages, of which only the
first has a header. Its leaf node has the number of that first page in place of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagelmdb.errors import StoreError

PAGE_HEADER = 16  # bytes
NODE_HEADER = 8
NO_PAGE = 2**64 - 1  # the root of an empty tree
MAX_DEPTH = 32  # the depth that a cursor of liblmdb can have
BATCH = 512  # leaf pages that are checked at once: they take tens of MB

BRANCH, LEAF, OVERFLOW = 1, 2, 4  # page flags
INLINE, BIG, SUB = 0, 1, 2  # flags of a leaf node: data in it, on overflow pages, or a sub-database

TREE = np.dtype(
    {
        "names": ["pad", "flags", "depth", "branch_pages", "leaf_pages", "overflow_pages", "entries", "root"],
        "formats": ["<u4", "<u2", "<u2", "<u8", "<u8", "<u8", "<u8", "<u8"],
    }
)


class Keys(NamedTuple):
    """Many keys as numbers, which numpy can compare in LMDB's order.

    Keys b"7" and b"00000012" are the words [0x3700000000000000, 0x3030303030303132] and the sizes [1, 8]:
    eight bytes are one number, and numbers compare as their bytes do.
    """

    words: np.ndarray  # uint64[n, width], padded with zeros
    sizes: np.ndarray  # int64[n]

    @classmethod
    def of(cls, key: bytes) -> Keys:
        words = np.frombuffer(key.ljust(-(-len(key) // 8) * 8, b"\0"), ">u8")
        return cls(words.astype(np.uint64)[None], np.array([len(key)]))

    def take(self, rows: np.ndarray | slice) -> Keys:
        return Keys(self.words[rows], self.sizes[rows])

    def padded(self, width: int) -> np.ndarray:
        return np.pad(self.words, ((0, 0), (0, width - self.words.shape[1])))

    def as_bytes(self) -> list[bytes]:
        data, width = self.words.astype(">u8").tobytes(), 8 * self.words.shape[1]
        return [data[width * row : width * row + size] for row, size in enumerate(self.sizes.tolist())]


class Nodes(NamedTuple):
    """The nodes of some pages, in order. One row for each node, except in `first`."""

    page: np.ndarray  # the row of its page among the pages that were read
    first: np.ndarray  # for each page, the row of its first node
    end: np.ndarray  # where its key ends, as an offset in the page
    value: np.ndarray  # lo | hi << 16
    flags: np.ndarray
    keys: Keys


class Values(NamedTuple):
    """Where the values of some leaf pages are."""

    keys: Keys
    offsets: np.ndarray  # in the file
    sizes: np.ndarray
    big: np.ndarray  # bool: it has overflow pages of its own


class Pages:
    """The first `count` pages of a file, mapped by numpy. Nothing is read beyond their end."""

    def __init__(self, path: str | Path, page_size: int, count: int):
        self.page_size = page_size
        self.count = count
        self.bytes = np.asarray(np.memmap(path, np.uint8, "r", shape=(count * page_size,)))
        self.words = self.bytes.view("<u2")

    def check_trees(self, main: np.void, read_values: bool) -> None:
        """Check the main tree and the sub-databases in it, and that no page is used twice."""
        runs, named = self.check_tree(main, read_values)
        for name, tree in named:
            sub_runs, nested = self.check_tree(tree, read_values)
            runs += sub_runs
            if nested:
                raise StoreError(f"sub-database {name!r} has another one in it")
        _check_runs(runs)

    def find_tree(self, main: np.void, name: bytes) -> np.void:
        """The tree of a named sub-database."""
        for pages, nodes in self._read_leaves(main):
            for found, tree in self._read_named(pages, nodes):
                if found == name:
                    return tree
        raise StoreError(f"no sub-database {name!r}")

    def locate_values(self, tree: np.void) -> Iterator[Values]:
        """Where the values of a tree are, in key order."""
        for pages, nodes in self._read_leaves(tree):
            offsets = pages[nodes.page] * self.page_size + nodes.end
            big = nodes.flags == BIG
            offsets[big] = self._read_runs(pages, nodes, big) * self.page_size + PAGE_HEADER
            if np.any(offsets + nodes.value > len(self.bytes)):
                raise StoreError("a value runs past the end of the file")
            yield Values(nodes.keys, offsets, nodes.value, big)

    def _read_leaves(self, tree: np.void) -> Iterator[tuple[np.ndarray, Nodes]]:
        """(page numbers, nodes) of the leaf pages, some pages at a time."""
        level, depth = self._read_root(tree)
        if level is None:
            return
        for _ in range(depth - 1):
            level = _children(self._read_nodes(self._in_range(level, level), BRANCH, minimum=2))
        level = self._in_range(level, level)
        for start in range(0, len(level), BATCH):
            pages = level[start : start + BATCH]
            yield pages, self._read_nodes(pages, LEAF, minimum=1)

    def _read_runs(self, pages: np.ndarray, nodes: Nodes, big: np.ndarray) -> np.ndarray:
        """The first overflow page of each of the `big` values."""
        sources = pages[nodes.page[big]]
        at = sources * self.page_size + nodes.end[big]
        return self._in_range(self.bytes[at[:, None] + np.arange(8)].view("<u8")[:, 0], sources)

    def check_tree(self, tree: np.void, read_values: bool) -> tuple[list, list[tuple[bytes, np.void]]]:
        """Check one B-tree. Returns the runs of pages (starts, lengths) in use, and its sub-databases."""
        level, depth = self._read_root(tree)
        if level is None:
            return [], []
        lows = Keys(np.zeros((1, 1), np.uint64), np.zeros(1, np.int64))
        runs, total = [], 0
        for above_leaves in reversed(range(depth)):
            total += len(level)
            if total > self.count:
                raise StoreError("a tree uses a page twice")
            level = self._in_range(level, level)
            runs.append((level, np.ones_like(level)))
            if above_leaves:
                level, lows = self._descend(level, lows)
        found, named, previous = 0, [], None
        for start in range(0, len(level), BATCH):
            part = slice(start, start + BATCH)
            nodes = self._read_nodes(level[part], LEAF, minimum=1)
            previous = self._check_order(level[part], nodes, lows.take(part), previous)
            runs.append(self._check_values(level[part], nodes, read_values))
            named += self._read_named(level[part], nodes)
            found += len(nodes.page)
        if found != tree["entries"]:
            raise StoreError(f"a tree has {found} entries and claims {tree['entries']}")
        return runs, named

    def has_key(self, tree: np.void, key: bytes) -> bool:
        """Look a key up as liblmdb does, but check each page on the way first."""
        page, depth = self._read_root(tree)
        if page is None:
            return False
        wanted = Keys.of(key)
        for _ in range(depth - 1):
            nodes = self._read_nodes(self._in_range(page, page), BRANCH, minimum=2)
            # The first key of a branch page is not used: its child has all keys before the second.
            row = np.count_nonzero(~_less(wanted, nodes.keys)[1:])
            page = _children(nodes)[row : row + 1]
        keys = self._read_nodes(self._in_range(page, page), LEAF, minimum=1).keys
        return bool(np.any(~_less(wanted, keys) & ~_less(keys, wanted)))

    def _read_root(self, tree: np.void) -> tuple[np.ndarray | None, int]:
        """(root page, depth); the page is None if the tree is empty."""
        root, depth, entries = int(tree["root"]), int(tree["depth"]), int(tree["entries"])
        if tree["flags"] != 0:
            raise StoreError(f"a tree has flags {tree['flags']:#x}, which no image store has")
        if root == NO_PAGE:
            if entries:
                raise StoreError(f"an empty tree claims {entries} entries")
            return None, 0
        if not 1 <= depth <= MAX_DEPTH:
            raise StoreError(f"a tree claims a depth of {depth}")
        return np.array([root], np.uint64), depth

    def _in_range(self, wanted: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """The page numbers as int64; StoreError if one of them is not in the file."""
        good = (wanted >= 2) & (wanted < self.count)
        if not good.all():
            bad = np.argmin(good)
            raise StoreError(f"page {sources[bad]} refers to page {wanted[bad]} of {self.count}")
        return wanted.astype(np.int64)

    def _descend(self, level: np.ndarray, lows: Keys) -> tuple[np.ndarray, Keys]:
        """The children of branch pages, and the smallest key that may be in each."""
        nodes = self._read_nodes(level, BRANCH, minimum=2)
        children = _children(nodes)
        self._in_range(children, level[nodes.page])
        width = max(nodes.keys.words.shape[1], lows.words.shape[1])
        words, sizes = nodes.keys.padded(width), nodes.keys.sizes.copy()
        words[nodes.first] = lows.padded(width)  # in place of the first keys, which are not used
        sizes[nodes.first] = lows.sizes
        return children, Keys(words, sizes)

    def _read_nodes(self, level: np.ndarray, kind: int, minimum: int) -> Nodes:
        """The nodes of pages of one kind. Checks that each node and its key are inside the page."""
        base = level * (self.page_size // 2)  # in 16-bit words
        header = self.words[base[:, None] + np.arange(PAGE_HEADER // 2)]
        number = np.ascontiguousarray(header[:, :4]).view("<u8")[:, 0]
        _require(number == level.astype(np.uint64), level, "has another page's number")
        _require(header[:, 5] == kind, level, f"is not a {'leaf' if kind == LEAF else 'branch'} page")
        lower, upper = header[:, 6].astype(np.int64), header[:, 7].astype(np.int64)
        good = (lower >= PAGE_HEADER) & (lower % 2 == 0) & (lower <= upper) & (upper <= self.page_size)
        _require(good, level, "has bounds out of range")
        counts = (lower - PAGE_HEADER) // 2
        _require(counts >= minimum, level, "has too few nodes")

        first = np.cumsum(counts) - counts
        page = np.repeat(np.arange(len(level)), counts)
        within = np.arange(len(page)) - first[page]
        offset = self.words[base[page] + PAGE_HEADER // 2 + within].astype(np.int64)
        good = (offset >= upper[page]) & (offset % 2 == 0) & (offset + NODE_HEADER <= self.page_size)
        _require(good, level[page], "has a node out of range")
        node = self.words[(base[page] + offset // 2)[:, None] + np.arange(NODE_HEADER // 2)].astype(np.int64)
        key_size = node[:, 3]
        end = offset + NODE_HEADER + key_size
        _require(end <= self.page_size, level[page], "has a key out of range")
        keys = self._read_keys(level[page] * self.page_size + offset + NODE_HEADER, key_size)
        return Nodes(page, first, end, node[:, 0] | node[:, 1] << 16, node[:, 2], keys)

    def _read_keys(self, starts: np.ndarray, sizes: np.ndarray) -> Keys:
        words = np.zeros((len(sizes), -(-max(int(sizes.max()), 1) // 8)), np.uint64)
        for column in range(words.shape[1]):
            rows = np.flatnonzero(sizes > 8 * column)
            at = (starts[rows] + 8 * column)[:, None] + np.arange(8)
            taken = self.bytes[np.minimum(at, len(self.bytes) - 1)]
            taken[np.arange(8) >= (sizes[rows] - 8 * column)[:, None]] = 0
            words[rows, column] = taken.view(">u8")[:, 0]
        return Keys(words, sizes)

    def _check_order(self, level: np.ndarray, nodes: Nodes, lows: Keys, previous: Keys | None) -> Keys:
        """Check that keys ascend in each page, and that they fit the branch pages. Returns the last key."""
        keys = nodes.keys
        _require(keys.sizes > 0, level[nodes.page], "has an empty key")
        ascending = _less(keys.take(slice(None, -1)), keys.take(slice(1, None)))
        ascending[nodes.first[1:] - 1] = True  # these pairs are on two pages
        _require(ascending, level[nodes.page[1:]], "has keys out of order")
        outside = _less(keys.take(nodes.first), lows)
        last = np.append(nodes.first[1:] - 1, len(keys.sizes) - 1)
        outside[1:] |= ~_less(keys.take(last[:-1]), lows.take(slice(1, None)))
        if previous is not None:
            outside[:1] |= ~_less(previous, lows.take(slice(0, 1)))
        _require(~outside, level, "has keys that belong to another page")
        return keys.take(last[-1:])

    def _check_values(self, level: np.ndarray, nodes: Nodes, read_values: bool) -> tuple:
        """Check that values are inside their page or on overflow pages. Returns the runs of those."""
        pages = level[nodes.page]
        _require(nodes.flags <= SUB, pages, "has a node of an unknown kind")
        big = nodes.flags == BIG
        stored = np.where(big, 8, nodes.value)
        _require(nodes.end + stored <= self.page_size, pages, "has a value out of range")
        _require((nodes.flags != SUB) | (nodes.value == TREE.itemsize), pages, "has a damaged sub-database")

        starts = self._read_runs(level, nodes, big)
        lengths = (nodes.value[big] + PAGE_HEADER - 1) // self.page_size + 1
        _require(starts + lengths <= self.count, pages[big], "has a value that runs past the end of the file")
        if read_values:
            header = self.words[(starts * (self.page_size // 2))[:, None] + np.arange(PAGE_HEADER // 2)]
            number = np.ascontiguousarray(header[:, :4]).view("<u8")[:, 0]
            claimed = header[:, 6] | header[:, 7].astype(np.int64) << 16
            good = (number == starts.astype(np.uint64)) & (header[:, 5] == OVERFLOW)
            good &= (claimed >= lengths) & (starts + claimed <= self.count)
            _require(good, starts, "does not begin a large value")
        return starts, lengths

    def _read_named(self, level: np.ndarray, nodes: Nodes) -> list[tuple[bytes, np.void]]:
        """(name, tree) of the sub-databases among these nodes."""
        named = []
        for row in np.flatnonzero(nodes.flags == SUB):
            end = int(level[nodes.page[row]]) * self.page_size + int(nodes.end[row])
            data = self.bytes[end : end + TREE.itemsize]
            name = bytes(self.bytes[end - int(nodes.keys.sizes[row]) : end])
            named.append((name, np.frombuffer(data.tobytes(), TREE)[0]))
        return named


def _less(a: Keys, b: Keys) -> np.ndarray:
    """a < b for each row, in LMDB's order: by bytes, and if one key begins with the other, by size."""
    width = max(a.words.shape[1], b.words.shape[1])
    left, right = a.padded(width), b.padded(width)
    less = a.sizes < b.sizes
    for column in reversed(range(width)):
        x, y = left[:, column], right[:, column]
        less = np.where(x == y, less, x < y)
    return less


def _children(nodes: Nodes) -> np.ndarray:
    """The pages that branch nodes point to."""
    return (nodes.value | nodes.flags << 32).astype(np.uint64)


def _check_runs(runs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise StoreError if two runs of pages overlap."""
    if not runs:
        return
    starts = np.concatenate([start for start, _ in runs])
    ends = starts + np.concatenate([length for _, length in runs])
    order = np.argsort(starts)
    twice = np.flatnonzero(ends[order[:-1]] > starts[order[1:]])
    if len(twice):
        raise StoreError(f"page {starts[order[twice[0] + 1]]} is used twice")


def _require(good: np.ndarray, pages: np.ndarray, what: str) -> None:
    if not good.all():
        raise StoreError(f"page {pages[np.argmin(good)]} {what}")
