"""What a prepare has fetched of the data is used by the next one, and by nobody in between."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.prepare import leave_downloads, take_downloads
from finetune_trainer.runtime.fencing import Attempt


def fetched(attempt: Attempt) -> Path:
    """One file that is whole, and two that are under way."""
    folder = take_downloads(attempt) / "0-abc"
    (folder / ".cache").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("whole")
    (folder / "more.jsonl.part").write_text("ha")
    (folder / ".cache" / "third.incomplete").write_text("l")
    return folder


def test_the_next_attempt_has_what_was_whole_and_nothing_else(tmp_path: Path) -> None:
    with Attempt(tmp_path, 1, "prepare") as first:
        fetched(first)
        leave_downloads(first)
    with Attempt(tmp_path, 2, "prepare") as second:
        found = take_downloads(second)
        names = [path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()]
        assert names == ["0-abc/rows.jsonl"]
        assert (found / "0-abc" / "rows.jsonl").read_text() == "whole"


def test_an_attempt_that_was_replaced_leaves_nothing(tmp_path: Path) -> None:
    first, second = Attempt(tmp_path, 1, "prepare"), Attempt(tmp_path, 2, "prepare")
    first.claim()
    fetched(first)
    with second:
        folder = fetched(second)
        (folder / "rows.jsonl").write_text("of the second")
        leave_downloads(first)
        assert not (tmp_path / "downloads").exists()
        assert (folder / "rows.jsonl").read_text() == "of the second"
    assert not (tmp_path / "downloads").exists()
