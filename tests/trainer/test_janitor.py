"""The janitor removes what nothing keeps once it is old, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from finetune_api.run import ExitCode
from finetune_trainer.janitor import Orders, Refused, check_age, read_keep, run
from finetune_trainer.sources.lease import Lease

UID = "0b0e7c0e-1111-4222-8333-444455556666"
OTHER = UID.replace("0b0e", "ffff")
KEY, REVISION = "0123456789abcdef", "c0ffee0000000000"
ROOT = Path(__file__).resolve().parents[2]
JOB = f"jobs/{UID}"
ARTIFACT = "artifacts/support-bot-0b0e7c0e"
MODEL = f"models/{KEY}/{REVISION}"
SHORT, LONG = 2.0, 3600.0
"""Seconds: what is older in these tests after a moment, and what nothing here is older than."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for folder in (JOB, ARTIFACT, MODEL, f"jobs/{OTHER}", "jobs/x", "notes"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"12345")
    (tmp_path / MODEL / ".finetune.json").write_text("{}")
    return tmp_path


def clean(
    root: Path,
    *keep: str,
    gone: Iterable[str] = (),
    margin: float = 0.0,
    retention: float = 0.0,
    claim: str = "mine",
) -> list[str]:
    """One janitor; what it said."""
    said: list[str] = []
    code = run(
        root, Orders(claim, frozenset(keep), frozenset(gone), margin, retention), said.append
    )
    assert code == ExitCode.OK, said
    return said


def there(root: Path) -> set[str]:
    folders = (JOB, f"jobs/{OTHER}", "jobs/x", ARTIFACT, MODEL, "notes")
    return {folder for folder in folders if (root / folder / "file").is_file()}


def grow_old(path: Path) -> None:
    """Wait until its last change is long enough ago; nobody can set that time."""
    while time.time() - path.stat().st_ctime < SHORT + 0.05:
        time.sleep(0.01)


ALL = {JOB, f"jobs/{OTHER}", "jobs/x", ARTIFACT, MODEL, "notes"}


def test_folder_of_a_job_that_is_gone_is_removed_and_counted(workspace: Path) -> None:
    said = clean(workspace, f"jobs/{OTHER[:8]}")
    assert there(workspace) == ALL - {JOB}
    assert f"removed {JOB}: 5 bytes freed" in said
    assert not list((workspace / ".janitor" / "trash").iterdir())


def test_folder_of_a_living_job_stays_however_old_it_is(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}")
    assert there(workspace) == ALL


def test_folder_of_a_job_that_is_known_to_be_gone_need_not_be_old(workspace: Path) -> None:
    clean(workspace, f"jobs/{OTHER[:8]}", gone=[f"jobs/{UID[:8]}"], margin=LONG)
    assert there(workspace) == ALL - {JOB}


def test_what_is_kept_is_kept_whatever_is_said_to_be_gone(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", gone=[f"jobs/{UID[:8]}"], margin=LONG)
    assert there(workspace) == ALL


def test_folder_that_is_younger_than_any_lag_stays(workspace: Path) -> None:
    clean(workspace, margin=LONG)
    assert there(workspace) == ALL


def test_time_that_somebody_set_does_not_make_a_folder_old(workspace: Path) -> None:
    os.utime(workspace / JOB, (0, 0))
    clean(workspace, margin=LONG)
    assert JOB in there(workspace)


def test_artifact_goes_when_a_second_janitor_finds_it_unnamed(workspace: Path) -> None:
    said = clean(workspace)
    assert ARTIFACT in there(workspace)
    assert any(ARTIFACT in line for line in said)
    clean(workspace)
    assert ARTIFACT not in there(workspace)


def test_artifact_has_its_time_of_grace(workspace: Path) -> None:
    clean(workspace)
    clean(workspace, margin=LONG)
    assert ARTIFACT in there(workspace)


@pytest.mark.parametrize("keep", [ARTIFACT, f"jobs/{UID[:8]}"])
def test_artifact_that_is_named_again_begins_anew(workspace: Path, keep: str) -> None:
    clean(workspace)
    clean(workspace, keep)
    clean(workspace)
    assert ARTIFACT in there(workspace)


def test_model_goes_when_nobody_used_it_for_the_retention_time(workspace: Path) -> None:
    clean(workspace, retention=LONG)
    assert MODEL in there(workspace)
    grow_old(workspace / MODEL / ".finetune.json")
    clean(workspace, f"models/{KEY}", retention=SHORT)
    assert MODEL in there(workspace), "an unfinished job names it"
    os.utime(workspace / MODEL / ".finetune.json")
    clean(workspace, retention=SHORT)
    assert MODEL in there(workspace), "a job has just used it"
    grow_old(workspace / MODEL / ".finetune.json")
    clean(workspace, retention=SHORT)
    assert MODEL not in there(workspace)
    assert (workspace / "models" / KEY).is_dir(), "a pod may be about to mount it"


def test_models_stay_for_ever_without_a_retention_time(workspace: Path) -> None:
    clean(workspace)
    assert MODEL in there(workspace)


def test_model_that_is_somebodys_turn_is_left_to_him(workspace: Path) -> None:
    grow_old(workspace / MODEL / ".finetune.json")
    lease = Lease(workspace / "models" / KEY, REVISION, "job")
    assert lease.take_if_free()
    clean(workspace, retention=SHORT)
    assert MODEL in there(workspace)
    lease.give_back()
    clean(workspace, retention=SHORT)
    assert MODEL not in there(workspace)


def test_half_a_download_of_dead_jobs_goes(workspace: Path) -> None:
    partial = workspace / "models" / KEY / f".partial-{REVISION}-abc"
    (partial / "inner").mkdir(parents=True)
    grow_old(partial)
    (partial / "inner" / "half").write_bytes(b"123")
    clean(workspace, margin=SHORT)
    assert partial.is_dir(), "somebody still writes to it"
    grow_old(partial / "inner" / "half")
    clean(workspace, f"models/{KEY}", margin=SHORT)
    assert partial.is_dir(), "a job that has not ended may go on with it"
    clean(workspace, margin=SHORT)
    assert not partial.exists()


def test_links_are_neither_followed_nor_removed(workspace: Path) -> None:
    precious = workspace / "notes"
    (workspace / JOB / "link").symlink_to(precious)
    third = UID.replace("0b0e", "eeee")
    (workspace / "jobs" / third).symlink_to(precious)
    clean(workspace)
    assert (workspace / "jobs" / third).is_symlink()
    assert "notes" in there(workspace)
    assert JOB not in there(workspace)


@pytest.mark.parametrize("folder", [".janitor", ".janitor/trash", ".janitor/claims"])
def test_link_in_the_place_of_its_own_folders_stops_it(workspace: Path, folder: str) -> None:
    (workspace / folder).parent.mkdir(exist_ok=True)
    (workspace / folder).symlink_to(workspace / "notes")
    said: list[str] = []
    assert (
        run(workspace, Orders("mine", frozenset(), frozenset(), 0, 0), said.append)
        == ExitCode.USER_ERROR
    )
    assert there(workspace) == ALL
    assert "is a link" in said[0]


def test_names_of_other_shapes_stay(workspace: Path) -> None:
    others = [f"jobs/{UID.upper()}", "artifacts/support-bot", "models/abc", f"models/{KEY}/main"]
    for folder in others:
        (workspace / folder).mkdir()
    clean(workspace, retention=SHORT)
    clean(workspace, retention=SHORT)
    assert all((workspace / folder).is_dir() for folder in others)


def test_volume_that_two_claims_share_is_left_alone_by_both(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}", claim="first")
    for claim in ("second", "first"):
        said: list[str] = []
        code = run(workspace, Orders(claim, frozenset(), frozenset(), 0, 0), said.append)
        assert code == ExitCode.USER_ERROR
        assert "uses the same folder of the volume" in said[0]
    assert there(workspace) == ALL


def test_trash_of_a_janitor_that_died_is_emptied(workspace: Path) -> None:
    clean(workspace)
    left = workspace / ".janitor" / "trash" / "jobs_x-1"
    (left / "inner").mkdir(parents=True)
    clean(workspace)
    assert not left.exists()


def test_two_janitors_at_once_remove_everything_between_them(workspace: Path) -> None:
    for number in range(60):
        folder = workspace / "jobs" / f"{number:08x}-1111-4222-8333-444455556666"
        folder.mkdir()
        (folder / "file").write_bytes(b"1")
    both = [threading.Thread(target=clean, args=(workspace,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert {path.name for path in (workspace / "jobs").iterdir()} == {"x"}
    assert not list((workspace / ".janitor" / "trash").iterdir())


@pytest.mark.parametrize("text", ["", "2\njobs/a", "jobs/a", "1\njobs/a\njobs/b"])
def test_list_that_was_cut_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keep").write_text(text)
    with pytest.raises(Refused):
        read_keep(tmp_path / "keep")


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1\njobs/a", 1), ("1\njobs/a\n", 1)])
def test_whole_list_is_read(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "keep").write_text(text)
    assert len(read_keep(tmp_path / "keep")[0]) == size


def test_jobs_that_are_gone_stand_behind_a_minus(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("2\njobs/a\n-jobs/b")
    assert read_keep(tmp_path / "keep") == ({"jobs/a"}, {"jobs/b"})


@pytest.mark.parametrize("age", [901.0, -901.0, float("nan")])
def test_old_list_and_one_from_the_future_are_refused(age: float) -> None:
    with pytest.raises(Refused):
        check_age(1000.0, 1000.0 + age, 900.0)
    check_age(1000.0, 1899.0, 900.0)


def command(workspace: Path, listed_at: float) -> subprocess.CompletedProcess[str]:
    keep = workspace / "keep"
    keep.write_text(f"1\njobs/{OTHER[:8]}")
    arguments = ["--root", str(workspace), "--claim", "mine", "--keep", str(keep)]
    arguments += ["--listed-at", str(listed_at), "--list-seconds", "900"]
    arguments += ["--margin-seconds", "0", "--model-retention-days", "30"]
    return subprocess.run(
        [sys.executable, "-m", "finetune_trainer.janitor", *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}"},
        capture_output=True,
        text=True,
    )


def test_command_line_removes_what_the_list_lacks(workspace: Path) -> None:
    done = command(workspace, time.time())
    assert done.returncode == 0, done.stderr
    assert f"removed {JOB}: 5 bytes freed" in done.stdout.splitlines()
    assert there(workspace) == ALL - {JOB}


def test_command_line_with_an_old_list_removes_nothing(workspace: Path) -> None:
    done = command(workspace, time.time() - 1000)
    assert done.returncode == ExitCode.RETRYABLE
    assert "nothing was removed" in done.stdout
    assert there(workspace) == ALL
