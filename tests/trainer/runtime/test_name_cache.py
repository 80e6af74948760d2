"""Files that another node has just written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
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


def test_a_stale_handle_of_its_folder_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has another folder of that name since."""
    path, slept = tmp_path / "files.json", list[float]()
    path.touch()
    stat = os.stat

    def stat_later(of: Any, **options: Any) -> os.stat_result:
        if of == path and not slept:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(of, **options)

    monkeypatch.setattr(os, "stat", stat_later)
    assert wait_for_file(path, slept.append)
    assert len(slept) == 1
