"""describe: the facts about a store as a plain dictionary."""

from __future__ import annotations

from typing import Any

from imagelmdb.store.reader import LMDBStore, find_files, read_state


def describe(store: LMDBStore) -> dict[str, Any]:
    """The facts that `imagelmdb info` shows. The digest takes a quarter of a second for ImageNet."""
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
    facts |= store.parts[0].describe()
    if digest := store.digest:
        facts |= {
            "image_bytes": sum(part.describe()["image_bytes"] for part in store.parts),
            "digest": digest,
        }
    return facts
