"""The folder of checkpoints: listed or an error, and other folders in it are left alone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.checkpointing import checkpoint_folder
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.checkpointing.restore import TrainerState

from tests.trainer import pool
from tests.trainer.checkpoint_ranks import Rank, in_process_group, write_marker_only
from tests.trainer.volumes import remember_listings, stale_listings

pytestmark = pytest.mark.filterwarnings("default")


def test_an_unlistable_checkpoint_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting over would lose the checkpoints."""
    folder = write_marker_only(tmp_path, 1, 10).parent
    assert len(checkpoint_folder.list_checkpoints(tmp_path, 2)) == 1

    def denied(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any) -> Any:
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path)

        return refuse

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, denied(getattr(os, name)))
    with pytest.raises(PermissionError):
        checkpoint_folder.list_checkpoints(tmp_path, 2)


def add_other_folders(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.wait_until_saved()
    checkpoints = job / "checkpoints"
    for name in ("old", ".snapshot", "²"):
        shutil.copytree(checkpoints / "1", checkpoints / name)
    shutil.copytree(checkpoints / "1" / "step-00000001", checkpoints / "1" / "step-2 (copy)")
    odd = checkpoints / "1" / "step-00000002"
    odd.mkdir()
    (odd / MARKER).write_text("[]")
    (checkpoints / "old" / "step-00000001" / MARKER).unlink()
    rank.saver.save(TrainerState(3))
    rank.saver.close()
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 3
    later.saver.close()
    assert (checkpoints / "old" / "step-00000001").is_dir()


def resume_from_old_listings(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.wait_until_saved()
    listings = remember_listings(job)
    rank.step(2)
    rank.saver.save(TrainerState(2))
    rank.saver.close()
    with stale_listings(listings):
        later = Rank(job, 64, attempt=2)
        assert later.resume().step == 2
        later.saver.close()


def test_the_newest_checkpoint_is_restored_where_the_listing_lacks_it(tmp_path: Path) -> None:
    """An NFS client may list a folder as it was a minute ago."""
    pool.run(in_process_group, resume_from_old_listings, tmp_path, world=1, folder=tmp_path / "log")


def resume_from_old_listing_of_files(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.close()
    folder = job / "checkpoints" / "1" / "step-00000001"
    with stale_listings({folder: []}):
        later = Rank(job, 64, attempt=2)
        assert later.resume().step == 1
        later.saver.close()


def test_the_files_of_a_checkpoint_are_read_by_their_names(tmp_path: Path) -> None:
    function = resume_from_old_listing_of_files
    pool.run(in_process_group, function, tmp_path, world=1, folder=tmp_path / "log")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"folder": "../1/step-00000010"}', '{"folder": "9/step-00000010"}']
)
def test_a_latest_file_that_names_no_checkpoint_of_the_run_is_ignored(
    tmp_path: Path, content: str
) -> None:
    write_marker_only(tmp_path, 1, 10)
    (tmp_path / "checkpoints" / "latest.json").write_text(content)
    assert [each.step for each in checkpoint_folder.list_checkpoints(tmp_path, 2)] == [10]


def test_other_folders_next_to_checkpoints_are_left_alone(tmp_path: Path) -> None:
    pool.run(in_process_group, add_other_folders, tmp_path, world=1, folder=tmp_path / "logs")
