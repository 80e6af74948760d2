"""Files that another node has just written."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.runtime.name_cache import CACHED_SECONDS, POLL_SECONDS, wait_for_file


def test_a_file_that_appears_later_is_waited_for(tmp_path: Path) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            (tmp_path / "output").mkdir()
            (tmp_path / "output" / "files.json").touch()

    assert wait_for_file(tmp_path / "output" / "files.json", sleep)
    assert len(slept) == 3


def test_a_file_that_stays_away_is_missing_after_a_minute(tmp_path: Path) -> None:
    slept: list[float] = []
    assert not wait_for_file(tmp_path / "files.json", slept.append)
    assert sum(slept) == CACHED_SECONDS
    assert set(slept) == {POLL_SECONDS}


def test_a_file_that_is_there_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "files.json").touch()
    slept: list[float] = []
    assert wait_for_file(tmp_path / "files.json", slept.append)
    assert slept == []
