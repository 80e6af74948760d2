"""The janitor removes what nothing keeps once it is old, and nothing else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from finetune_api.protocol import ExitCode
from finetune_trainer.janitor import check_list_age, clean_workspace, read_keep_list
from finetune_trainer.runtime.logs import TextFormatter
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.workspace_cleanup import CleanupRefused, CleanupRules

UID = "0b0e7c0e-1111-4222-8333-444455556666"
OTHER = UID.replace("0b0e", "ffff")
KEY, REVISION = "0123456789abcdef", "c0ffee0000000000"
ROOT = Path(__file__).resolve().parents[2]
JOB = f"jobs/{UID}"
ARTIFACT = "artifacts/support-bot-0b0e7c0e"
MODEL = f"models/{KEY}/{REVISION}"
NOTHING: tuple[frozenset[str], frozenset[str], frozenset[str]]
NOTHING = (frozenset(), frozenset(), frozenset())
SHORT, LONG = 2.0, 3600.0
"""Seconds: an age that is reached within a test, and one that is not."""


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
    recent: Iterable[str] = (),
    margin: float = 0.0,
    retention: float = 0.0,
    claim: str = "mine",
) -> list[str]:
    """One janitor, which succeeds; its log lines."""
    lists = (frozenset(each) for each in (keep, gone, recent))
    rules = CleanupRules(claim, *lists, margin, retention)
    code, lines = janitor(root, rules)
    assert code == ExitCode.OK, lines
    return lines


def janitor(root: Path, rules: CleanupRules) -> tuple[ExitCode, list[str]]:
    """Exit code and log lines of one janitor."""
    logger, handler = logging.getLogger("finetune"), Lines()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        return clean_workspace(root, rules), handler.lines
    finally:
        logger.removeHandler(handler)


class Lines(logging.Handler):
    """Keeps log lines in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def existing(root: Path) -> set[str]:
    folders = (JOB, f"jobs/{OTHER}", "jobs/x", ARTIFACT, MODEL, "notes")
    return {folder for folder in folders if (root / folder / "file").is_file()}


def grow_old(path: Path) -> None:
    """Wait until its last change is long enough ago; no program can set that time."""
    while time.time() - path.stat().st_ctime < SHORT + 0.05:
        time.sleep(0.01)


ALL = {JOB, f"jobs/{OTHER}", "jobs/x", ARTIFACT, MODEL, "notes"}


def test_folder_of_a_job_that_is_gone_is_removed_and_counted(workspace: Path) -> None:
    lines = clean(workspace, f"jobs/{OTHER[:8]}")
    assert existing(workspace) == ALL - {JOB}
    assert any(f"Folder removed folder={JOB} freed_bytes=5" in line for line in lines)
    assert not list((workspace / ".janitor" / "trash").iterdir())


def test_folder_of_a_living_job_stays_however_old_it_is(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}")
    assert existing(workspace) == ALL


def test_folder_of_a_deleted_job_need_not_be_old(workspace: Path) -> None:
    clean(workspace, f"jobs/{OTHER[:8]}", gone=[f"jobs/{UID[:8]}"], margin=LONG)
    assert existing(workspace) == ALL - {JOB}


def test_an_entry_that_is_both_kept_and_gone_is_kept(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", gone=[f"jobs/{UID[:8]}"], margin=LONG)
    assert existing(workspace) == ALL


def test_folder_that_is_younger_than_the_margin_stays(workspace: Path) -> None:
    clean(workspace, margin=LONG)
    assert existing(workspace) == ALL


def test_modification_time_that_a_program_set_does_not_make_a_folder_old(workspace: Path) -> None:
    os.utime(workspace / JOB, (0, 0))
    clean(workspace, margin=LONG)
    assert JOB in existing(workspace)


def test_artifact_is_removed_when_a_second_janitor_finds_it_unnamed(workspace: Path) -> None:
    lines = clean(workspace)
    assert ARTIFACT in existing(workspace)
    assert any(ARTIFACT in line for line in lines)
    clean(workspace)
    assert ARTIFACT not in existing(workspace)


def test_condemned_artifact_stays_for_the_grace_period(workspace: Path) -> None:
    clean(workspace)
    clean(workspace, margin=LONG)
    assert ARTIFACT in existing(workspace)


@pytest.mark.parametrize("keep", [ARTIFACT, f"jobs/{UID[:8]}"])
def test_artifact_that_is_named_again_gets_a_new_grace_period(workspace: Path, keep: str) -> None:
    clean(workspace)
    clean(workspace, keep)
    clean(workspace)
    assert ARTIFACT in existing(workspace)


def complete(root: Path, retention: str | None = None) -> None:
    """What export leaves: a manifest, and the retention unless it is Always."""
    (root / ARTIFACT / "manifest.json").write_text("{}")
    if retention is not None:
        (root / ARTIFACT / ".retention").write_text(retention)


def test_complete_artifact_is_retained_however_long_nothing_refers_to_it(workspace: Path) -> None:
    complete(workspace)
    for _ in range(3):
        lines = clean(workspace)
    assert ARTIFACT in existing(workspace)
    retained = f"Artifact retained, although nothing refers to it folder={ARTIFACT}"
    assert any(f"{retained} retention=Always" in line and "bytes=7" in line for line in lines)


def test_artifact_that_is_retained_while_referred_to_is_removed_afterwards(workspace: Path) -> None:
    complete(workspace, "WhileReferenced")
    clean(workspace)
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}")
    assert ARTIFACT in existing(workspace), "its job exists"
    clean(workspace)
    lines = clean(workspace)
    assert ARTIFACT not in existing(workspace)
    assert any(f"Artifact expired folder={ARTIFACT} retention=WhileReferenced" in x for x in lines)


def test_artifact_stays_for_the_hours_of_its_retention(workspace: Path) -> None:
    complete(workspace, "1h")
    for _ in range(3):
        lines = clean(workspace)
    assert ARTIFACT in existing(workspace)
    assert any("Artifact retained" in line and "retention=1h" in line for line in lines)


def test_a_retention_that_cannot_be_read_retains_the_artifact(workspace: Path) -> None:
    complete(workspace, "30 days")
    for _ in range(3):
        lines = clean(workspace)
    assert ARTIFACT in existing(workspace)
    assert any("Cannot read the retention of an artifact" in line for line in lines)


def test_a_link_in_the_place_of_the_retention_retains_the_artifact(workspace: Path) -> None:
    complete(workspace)
    (workspace / "notes" / "retention").write_text("WhileReferenced")
    (workspace / ARTIFACT / ".retention").symlink_to(workspace / "notes" / "retention")
    for _ in range(3):
        clean(workspace)
    assert ARTIFACT in existing(workspace)


def test_released_artifact_is_removed_when_nothing_refers_to_it(workspace: Path) -> None:
    complete(workspace)
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}", gone=[ARTIFACT])
    clean(workspace, ARTIFACT, gone=[ARTIFACT])
    assert ARTIFACT in existing(workspace), "something refers to it"
    clean(workspace, gone=[ARTIFACT])
    clean(workspace, gone=[ARTIFACT])
    assert ARTIFACT not in existing(workspace)


def test_hours_begin_again_for_an_artifact_that_was_referred_to_between_two_janitors(
    workspace: Path,
) -> None:
    clean(workspace)
    mark = workspace / ".janitor" / "condemned" / Path(ARTIFACT).name
    grow_old(mark)
    lines = clean(workspace, recent=[ARTIFACT], margin=SHORT)
    assert ARTIFACT in existing(workspace), "no janitor has seen the reference, and it is gone"
    assert any("Artifact condemned" in line for line in lines)
    grow_old(mark)
    clean(workspace, margin=SHORT)
    assert ARTIFACT not in existing(workspace)


def test_a_release_does_not_end_the_grace_period_after_a_recent_reference(workspace: Path) -> None:
    complete(workspace)
    for recent in ((), [ARTIFACT]):
        clean(workspace, gone=[ARTIFACT], recent=recent)
        assert ARTIFACT in existing(workspace)


def test_model_is_removed_when_no_job_used_it_for_the_retention_time(workspace: Path) -> None:
    clean(workspace, retention=LONG)
    assert MODEL in existing(workspace)
    grow_old(workspace / MODEL / ".finetune.json")
    clean(workspace, f"models/{KEY}", retention=SHORT)
    assert MODEL in existing(workspace), "an unfinished job names it"
    os.utime(workspace / MODEL / ".finetune.json")
    clean(workspace, retention=SHORT)
    assert MODEL in existing(workspace), "a job has just used it"
    grow_old(workspace / MODEL / ".finetune.json")
    clean(workspace, retention=SHORT)
    assert MODEL not in existing(workspace)
    assert (workspace / "models" / KEY).is_dir(), "a pod may be about to mount it"


def test_models_stay_indefinitely_without_a_retention_time(workspace: Path) -> None:
    clean(workspace)
    assert MODEL in existing(workspace)


def test_model_of_which_a_job_has_the_lease_stays(workspace: Path) -> None:
    grow_old(workspace / MODEL / ".finetune.json")
    lease = Lease(workspace / "models" / KEY, REVISION, "job")
    assert lease.try_acquire()
    clean(workspace, retention=SHORT)
    assert MODEL in existing(workspace)
    lease.release()
    clean(workspace, retention=SHORT)
    assert MODEL not in existing(workspace)


def test_partial_download_of_dead_jobs_is_removed(workspace: Path) -> None:
    partial = workspace / "models" / KEY / f".partial-{REVISION}-abc"
    (partial / "inner").mkdir(parents=True)
    grow_old(partial)
    (partial / "inner" / "half").write_bytes(b"123")
    clean(workspace, margin=SHORT)
    assert partial.is_dir(), "a process still writes to it"
    grow_old(partial / "inner" / "half")
    clean(workspace, f"models/{KEY}", margin=SHORT)
    assert partial.is_dir(), "a job that has not ended may continue it"
    clean(workspace, margin=SHORT)
    assert not partial.exists()


def test_links_are_neither_followed_nor_removed(workspace: Path) -> None:
    precious = workspace / "notes"
    (workspace / JOB / "link").symlink_to(precious)
    third = UID.replace("0b0e", "eeee")
    (workspace / "jobs" / third).symlink_to(precious)
    clean(workspace)
    assert (workspace / "jobs" / third).is_symlink()
    assert "notes" in existing(workspace)
    assert JOB not in existing(workspace)


@pytest.mark.parametrize("folder", [".janitor", ".janitor/trash", ".janitor/claims"])
def test_link_in_the_place_of_the_janitors_own_folders_is_refused(
    workspace: Path, folder: str
) -> None:
    (workspace / folder).parent.mkdir(exist_ok=True)
    (workspace / folder).symlink_to(workspace / "notes")
    code, lines = janitor(workspace, CleanupRules("mine", *NOTHING, 0, 0))
    assert code == ExitCode.USER_ERROR
    assert existing(workspace) == ALL
    assert "is a link" in lines[0]


def test_folders_with_other_names_stay(workspace: Path) -> None:
    others = [f"jobs/{UID.upper()}", "artifacts/support-bot", "models/abc", f"models/{KEY}/main"]
    for folder in others:
        (workspace / folder).mkdir()
    clean(workspace, retention=SHORT)
    clean(workspace, retention=SHORT)
    assert all((workspace / folder).is_dir() for folder in others)


def test_nothing_is_removed_from_a_volume_that_two_claims_share(workspace: Path) -> None:
    clean(workspace, f"jobs/{UID[:8]}", f"jobs/{OTHER[:8]}", claim="first")
    for claim in ("second", "first"):
        code, lines = janitor(workspace, CleanupRules(claim, *NOTHING, 0, 0))
        assert code == ExitCode.USER_ERROR
        assert "uses the same folder of the volume" in lines[0]
    assert existing(workspace) == ALL


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
    with pytest.raises(CleanupRefused):
        read_keep_list(tmp_path / "keep")


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1\njobs/a", 1), ("1\njobs/a\n", 1)])
def test_complete_list_is_read(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "keep").write_text(text)
    assert len(read_keep_list(tmp_path / "keep").keep) == size


def test_deleted_jobs_are_listed_with_a_minus_and_recent_references_with_a_plus(
    tmp_path: Path,
) -> None:
    (tmp_path / "keep").write_text("3\njobs/a\n+artifacts/c\n-jobs/b")
    assert read_keep_list(tmp_path / "keep") == ({"jobs/a"}, {"jobs/b"}, {"artifacts/c"})


@pytest.mark.parametrize("age", [901.0, -901.0, float("nan")])
def test_old_list_and_one_from_the_future_are_refused(age: float) -> None:
    with pytest.raises(CleanupRefused):
        check_list_age(1000.0, 1000.0 + age, 900.0)
    check_list_age(1000.0, 1899.0, 900.0)


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


def test_command_line_removes_a_folder_that_the_list_lacks(workspace: Path) -> None:
    done = command(workspace, time.time())
    assert done.returncode == 0, done.stderr
    assert f"Folder removed folder={JOB} freed_bytes=5" in done.stderr
    assert existing(workspace) == ALL - {JOB}


def test_command_line_with_an_old_list_removes_nothing(workspace: Path) -> None:
    done = command(workspace, time.time() - 1000)
    assert done.returncode == ExitCode.RETRYABLE
    assert "Nothing was removed" in done.stderr
    assert existing(workspace) == ALL
