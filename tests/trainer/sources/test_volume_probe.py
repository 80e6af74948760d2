"""Facts about the workspace that prepare measures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import classify_error
from finetune_trainer.runtime.free_space import free_bytes_of_nearest
from finetune_trainer.sources.volume_probe import CHUNK_BYTES, MAX_SECONDS, measure_volume

from tests.trainer.volumes import SMALL, fail_as_stale, on_small_volume


def test_a_volume_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    facts = measure_volume(tmp_path)
    assert facts.free_bytes > 0
    assert facts.write_bytes_per_second > 0
    assert not list(tmp_path.iterdir())


def test_a_slow_volume_is_not_measured_for_long(tmp_path: Path) -> None:
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return (reads - 1) * MAX_SECONDS

    assert measure_volume(tmp_path, clock).write_bytes_per_second == CHUNK_BYTES / MAX_SECONDS


def test_measuring_does_not_fill_a_small_volume(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from finetune_trainer.sources.volume_probe import measure_volume\n"
        "print(measure_volume(Path(sys.argv[1])).free_bytes)"
    )
    assert int(on_small_volume(tmp_path, code)) == SMALL


def test_a_volume_that_does_not_answer_is_not_measured_by_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def fail_below_tmp_path(folder: Path) -> object:
        return fail_as_stale(folder) if folder == tmp_path else usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", fail_below_tmp_path)
    with pytest.raises(OSError, match="Stale") as raised:
        measure_volume(tmp_path)
    assert classify_error(raised.value)[0].reason == "VolumeUnavailable"
    assert free_bytes_of_nearest(tmp_path / "not" / "there") == usage(tmp_path.parent).free
