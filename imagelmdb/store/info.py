"""What a store says of itself, as a plain dictionary."""

from __future__ import annotations

from imagelmdb.store.format import digest_arrays
from imagelmdb.store.reader import LMDBStore, Shard, find_files, read_state


def describe(store: LMDBStore) -> dict:
    """Facts of `python -m imagelmdb info`; the digest takes a quarter of a second for ImageNet."""
    files = find_files(store.path)
    states = [read_state(file) for file in files]
    if not all(state.finished for state in states):
        return {"path": str(store.path), "complete": False, "source": states[0].source}
    facts = {
        "path": str(store.path),
        "complete": True,
        "count": len(store),
        "classes": store.classes,
        "encoding": store.encoding,
        "store_bytes": sum(file.stat().st_size for file in files),
    }
    first = store.parts[0]
    if not isinstance(first, Shard):
        return facts | {"format": first.format}
    return facts | {
        "format": f"imagelmdb {first.meta.version}",
        "image_bytes": sum(part.meta.image_bytes for part in store.parts),
        "tiled": first.meta.tiled,
        "max_size": first.meta.max_size,
        "quality": first.meta.quality,
        "shards": first.meta.shards,
        "skipped": first.meta.skipped,
        "reencoded": first.meta.summary.get("reencoded", 0),
        "source": first.meta.source,
        "digest": digest_arrays([part.arrays for part in store.parts]),
    }
