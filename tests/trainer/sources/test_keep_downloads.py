"""Downloads of an attempt are used by the next attempt, and by no other one."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources.keep_downloads import leave_downloads, take_downloads


def download(attempt: Attempt) -> Path:
    """Leave one complete file, and two that are in progress."""
    folder = take_downloads(attempt) / "0-abc"
    (folder / ".cache").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("complete")
    (folder / "more.jsonl.part").write_text("ha")
    (folder / ".cache" / "third.incomplete").write_text("l")
    return folder


def test_the_next_attempt_gets_the_complete_files_alone(tmp_path: Path) -> None:
    with Attempt(tmp_path, 1, "prepare") as first:
        download(first)
        leave_downloads(first)
    with Attempt(tmp_path, 2, "prepare") as second:
        found = take_downloads(second)
        names = [path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()]
        assert names == ["0-abc/rows.jsonl"]
        assert (found / "0-abc" / "rows.jsonl").read_text() == "complete"


def test_an_attempt_that_was_replaced_leaves_nothing(tmp_path: Path) -> None:
    first, second = Attempt(tmp_path, 1, "prepare"), Attempt(tmp_path, 2, "prepare")
    first.claim()
    download(first)
    with second:
        folder = download(second)
        (folder / "rows.jsonl").write_text("of the second")
        leave_downloads(first)
        assert not (tmp_path / "downloads").exists()
        assert (folder / "rows.jsonl").read_text() == "of the second"
    assert not (tmp_path / "downloads").exists()
