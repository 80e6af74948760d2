"""What the cache keeps, and that using an entry does not change it."""

from __future__ import annotations

import os
from pathlib import Path

from hack.images.cache import keep_newest


def test_the_last_used_stay_and_are_not_touched(tmp_path: Path) -> None:
    entries = [tmp_path / f"layer-{name}" for name in "abc"]
    for age, entry in enumerate(entries):
        entry.mkdir()
        os.utime(entry, (age, age))
        keep_newest(entry, 2)
        # Somebody may be packing the entry; tar refuses what changes meanwhile.
        assert entry.stat().st_mtime == age
    keep_newest(entries[1], 1)
    assert [entry.exists() for entry in entries] == [False, True, False]
