"""open_legacy: which tool wrote this database?

tool                                its entries
Efficient-PyTorch, pytorch-lmdb,    `__keys__`, `__len__`, and records of (image, label). All are written by
PyTorch-LMDB, tensorpack,           one serializer: pa.serialize of pyarrow, msgpack or pickle. Some databases
fast-pytorch-loader                 have no `__keys__`, and then the keys are numbers
torchlmdb                           `__keys__`, `__shape__`, `__labels__`, and records of bare pixels
torchrecord                         sub-databases db0, db1, ... of protobuf messages

Nothing says which tool it was, so we look at the entries. For example `__keys__` begins with

    93 a1 30 ...          msgpack: an array of 3, then the string "0"
    80 03 5d 71 ...       pickle, protocol 3
    00 00 00 00 00 ...    pyarrow: no tensors attached
"""

from __future__ import annotations

import math
import re
from functools import partial

import msgpack
import numpy as np

from imagelmdb.errors import DAMAGE, StoreError
from imagelmdb.store.format import KEYS_KEY, LEN_KEY
from imagelmdb.store.legacy import arrow, pickled, protobuf
from imagelmdb.store.legacy.database import MAX_CLASSES, Extents, KeyList, LegacyFile
from imagelmdb.store.lmdbfile import datafile
from imagelmdb.store.lmdbfile.environment import Environment

SHAPE_KEY = b"__shape__"
LABELS_KEY = b"__labels__"
_MAX_SIDE = 1 << 16  # px
_SIZE_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # msgpack's codes for bytes and texts
_LEAST_RECORD_BYTES = 32  # a record of torchrecord with its key; so a damaged key cannot mean a huge count


def open_legacy(environment: Environment) -> LegacyFile:
    """The store in a database of an older tool. A StoreError says what was found if it is none of those."""
    first = next(environment.keys(), None)
    if first is None:
        raise StoreError(f"{environment.path} is an empty LMDB")
    if environment.get(SHAPE_KEY) is not None:
        return _open_torchlmdb(environment)
    if first == b"db0":
        return _open_torchrecord(environment)
    return _open_serialized(environment)


def _open_serialized(environment: Environment) -> LegacyFile:
    listed = environment.get(KEYS_KEY)
    keys = _scan_keys(environment) if listed is None else _load_keys(environment)
    name = _recognise(environment, listed if listed is not None else environment.get(keys[0]))
    load = {"pyarrow": arrow.load, "msgpack": load_msgpack, "pickle": pickled.load}[name]
    _check_length(environment, keys, load)
    return LegacyFile(
        environment,
        format=name,
        extents=Extents(environment, [(None, keys)]),
        load=partial(_load_record, load),
    )


def _open_torchlmdb(environment: Environment) -> LegacyFile:
    shape = _load_meta(environment, SHAPE_KEY, pickled.load)
    listed, stored = environment.get(KEYS_KEY), environment.get(LABELS_KEY)
    sides = shape if type(shape) is tuple and all(type(side) is int for side in shape) else ()
    if listed is None or stored is None or len(sides) != 3 or not 1 <= min(sides) <= max(sides) < _MAX_SIDE:
        raise StoreError(
            f"{environment.path} looks like torchlmdb's, but lacks keys, labels or a shape of 3 sides"
        )
    keys = _load_keys(environment)
    _check_length(environment, keys, pickled.load)
    labels = _load_meta(environment, LABELS_KEY, pickled.load)
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < MAX_CLASSES for n in labels):
        raise StoreError(f"{environment.path}: __labels__ are not class numbers")
    if len(labels) != len(keys):
        raise StoreError(f"{environment.path}: {len(labels)} labels for {len(keys)} records")
    channels_first = shape[0] in (1, 3) and not environment.path.stem.endswith("_HWC")
    height, width = shape[1:] if channels_first else shape[:2]
    return LegacyFile(
        environment,
        format=f"torchlmdb {'CHW' if channels_first else 'HWC'}",
        extents=Extents(environment, [(None, keys)]),
        load=partial(_load_pixels, shape, channels_first),
        labels=np.array(labels, np.int32),
        pixels=(width, height),
    )


def _open_torchrecord(environment: Environment) -> LegacyFile:
    names = [key.decode("ascii", "replace") for key in environment.keys()]  # noqa: SIM118
    if any(not re.fullmatch(r"db\d+", name) for name in names):
        raise StoreError(f"{environment.path} looks like torchrecord's, but has {names[:3]}")
    names.sort(key=lambda name: int(name[2:]))
    if names[-1] != f"db{len(names) - 1}":
        raise StoreError(f"{environment.path} lacks some of the databases up to {names[-1]}")
    databases = [(name, _number_keys(environment, name)) for name in names]
    return LegacyFile(
        environment, format="torchrecord", extents=Extents(environment, databases), load=protobuf.load
    )


def _number_keys(environment: Environment, database: str) -> KeyList:
    """The keys from 0 to the last one. If a record between them is lost, reading it is an error."""
    last = b""
    for values in datafile.locate_all(environment.path, database):
        last = values.keys.take(slice(-1, None)).as_bytes()[0]
    if not last.isdigit() or int(last) * _LEAST_RECORD_BYTES > environment.facts.file_size:
        raise StoreError(f"{environment.path}: {database} is empty or has keys like {last!r}")
    return KeyList(int(last) + 1, len(last))


def _scan_keys(environment: Environment) -> KeyList:
    """The keys of a database without a list of them: they must be numbers."""
    keys = list(environment.keys())
    keys = [key for key in keys if not key.startswith(b"__")]
    if not keys or not all(map(bytes.isdigit, keys)):
        raise StoreError(
            f"{environment.path} is not a known kind of image store: its keys are like {keys[:3]}"
        )
    return KeyList.from_list(sorted(keys, key=int))


def _recognise(environment: Environment, value: memoryview) -> str:
    """The serializer that wrote a value."""
    start = bytes(value[:16])
    if start[:8] == bytes(8):
        return "pyarrow"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "pickle"
    if re.match(rb"[\x90-\x9f\xdc\xdd]", start):
        return "msgpack"
    raise StoreError(f"{environment.path} is not a known kind of image store: a value begins with {start!r}")


def _load_keys(environment: Environment) -> KeyList:
    loads = {
        "pyarrow": lambda value: KeyList.split(*arrow.load_keys(value)),
        "msgpack": lambda value: KeyList.from_list(load_msgpack_keys(value)),
        "pickle": lambda value: KeyList.from_list(pickled.load(bytes(value))),
    }
    return _load_meta(environment, KEYS_KEY, loads[_recognise(environment, environment.get(KEYS_KEY))])


def _load_meta(environment: Environment, key: bytes, load):
    try:
        return load(environment.get(key))
    except DAMAGE as error:
        raise StoreError(f"{environment.path}: {key.decode()}: {error}") from error


def _check_length(environment: Environment, keys: KeyList, load) -> None:
    if environment.get(LEN_KEY) is None:  # tensorpack does not write it
        return
    length = _load_meta(environment, LEN_KEY, load)
    if length != len(keys):
        raise StoreError(f"{environment.path}: __len__ says {length!r}, but there are {len(keys)} keys")


def load_msgpack(value: memoryview):
    """A msgpack value: ints, bytes (texts too), lists and maps. A record's image is a view, not a copy."""
    if value[0] != 0x92 or value[1] not in _SIZE_BYTES:  # not an array of 2 that begins with bytes
        return _unpack_msgpack(value)
    start = 2 + _SIZE_BYTES[value[1]]
    end = start + int.from_bytes(value[2:start], "big")
    return [value[start:end], _unpack_msgpack(value[end:])]


def _unpack_msgpack(data: memoryview):
    # A record has few items, and a map has 5 entries: so a hostile length costs no memory. Types that msgpack
    # can be extended with are refused.
    limits = {"max_array_len": 8, "max_map_len": 8, "max_ext_len": 0}
    return msgpack.unpackb(data, raw=True, object_hook=_make_array, **limits)


def _make_array(fields: dict[bytes, object]) -> np.ndarray:
    """The array that msgpack-numpy stored as a map."""
    dtype = np.dtype(pickled.DType(str(fields[b"type"], "ascii")).value)
    return np.frombuffer(fields[b"data"], dtype).reshape(fields[b"shape"])


def load_msgpack_keys(value: memoryview) -> list[bytes]:
    return msgpack.unpackb(value, raw=True, max_map_len=0, max_ext_len=0)


def _load_record(load, value: memoryview) -> tuple[memoryview | np.ndarray, int]:
    record = load(value)
    if not isinstance(record, list | tuple) or len(record) != 2:
        raise ValueError("no pair of image and label")
    image, label = record
    if isinstance(image, tuple | list) and len(image) == 1:  # pytorch-lmdb wraps it
        image = image[0]
    return _as_image(image), _as_label(label)


def _as_image(image) -> memoryview | np.ndarray:
    if isinstance(image, bytes):
        image = memoryview(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"an image of {image.dtype}")
        if image.ndim == 3:
            return _as_rgb(image, channels_first=image.shape[0] in (1, 3))
        image = memoryview(image)
    if not isinstance(image, memoryview) or image.ndim != 1 or len(image) == 0:
        raise ValueError("no image")
    return image


def _as_rgb(pixels: np.ndarray, *, channels_first: bool) -> np.ndarray:
    """The pixels as HWC with three channels. A view: grey pixels are repeated without a copy."""
    if channels_first:
        pixels = pixels.transpose(1, 2, 0)
    height, width, channels = pixels.shape
    if channels not in (1, 3) or not height or not width:
        raise ValueError(f"pixels of shape {pixels.shape}")
    return np.broadcast_to(pixels, (height, width, 3))


def _as_label(label) -> int:
    if isinstance(label, np.ndarray) and label.size == 1 and label.dtype.kind in "iu":
        label = int(label.reshape(()))
    if type(label) is not int:
        raise ValueError("no label")
    return label


def _load_pixels(
    shape: tuple[int, int, int], channels_first: bool, value: memoryview
) -> tuple[np.ndarray, None]:
    if len(value) != math.prod(shape):
        raise ValueError(f"{len(value)} bytes for pixels of shape {shape}")
    return _as_rgb(np.frombuffer(value, np.uint8).reshape(shape), channels_first=channels_first), None
