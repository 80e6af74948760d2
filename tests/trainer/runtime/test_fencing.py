"""An attempt that was replaced changes nothing, wherever it was frozen when that happened.

The older attempt is a process that stops itself (SIGSTOP) before one of the calls by which it
changes files. The newer one then does all its work, the older one is continued, and everything that
others see must be as the newer one left it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.checkpointing.artifact import publish_artifact
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.sources.artifact_folder import MANIFEST
from torch import distributed as dist

from tests.trainer import pool
from tests.trainer.checkpoint_ranks import Rank, in_process_group, steps_of

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "open")
FENCED, DONE = 75, 0


def work(attempt: Attempt) -> None:
    """The changes of a stage to shared files: publish, replace a folder, replace a file, remove."""
    with attempt:
        text = f"attempt {attempt.number}"
        for name in ("step-1", "output"):
            finished = attempt.scratch / name
            finished.mkdir()
            (finished / "weights").write_text(text)
        own = attempt.job / "checkpoints" / str(attempt.number)
        own.mkdir(parents=True, exist_ok=True)
        attempt.publish(attempt.scratch / "step-1", own / "step-1")
        attempt.publish(attempt.scratch / "output", attempt.job / "output")
        attempt.publish_file(attempt.job / "report.json", text.encode())
        for old in sorted((attempt.job / "checkpoints").glob("*/step-0")):
            attempt.remove_published(old)


def frozen_before(change: int, job: Path) -> int:
    """Pid of a process that runs the older attempt and stops before its `change`-th change."""
    child = os.fork()
    if child:
        return child
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES and str(job) in str(arguments[0]):
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(watch)
    code = 1
    try:
        work(Attempt(job, 1))
        code = DONE
    except RetryableError as error:
        code = FENCED if error.failure.reason == "Fenced" else 2
    finally:
        os._exit(code)


def published_files(job: Path) -> dict[str, str]:
    """Digests of all files but the claims and those in scratch folders."""
    found = {}
    for path in sorted(job.rglob("*")):
        name = path.relative_to(job).as_posix()
        if path.is_file() and not name.startswith((".", "claims/")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def moments(root: Path) -> Iterator[tuple[int, Path, int]]:
    """Number, job and pid of an older attempt, frozen before each of its changes in turn."""
    for change in range(1, 1000):
        job = root / str(change)
        for step in ("checkpoints/0/step-0", "output"):
            (job / step).mkdir(parents=True)
            (job / step / "weights").write_text("older than both")
        pid = frozen_before(change, job)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == DONE
            return
        yield change, job, pid


def test_an_older_attempt_frozen_anywhere_changes_no_file_of_the_newer_one(tmp_path: Path) -> None:
    tried = 0
    for change, job, pid in moments(tmp_path):
        work(Attempt(job, 2))
        left = published_files(job)
        assert left["output/weights"] == hashlib.sha256(b"attempt 2").hexdigest()
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        # An attempt that had only its own scratch folder left to change may well succeed.
        assert os.waitstatus_to_exitcode(status) in (FENCED, DONE), change
        assert published_files(job) == left, change
        tried = change
    assert tried > 20


def test_an_older_export_does_not_change_a_served_artifact(tmp_path: Path) -> None:
    job, target = tmp_path / "job", tmp_path / "artifact"

    def begin(number: int) -> Attempt:
        attempt = Attempt(job, number, "export", home=target)
        attempt.claim()
        (attempt.scratch / "artifact").mkdir()
        (attempt.scratch / "artifact" / "model").write_text(f"attempt {number}")
        return attempt

    older, newer = begin(1), begin(2)
    publish_artifact(newer, newer.scratch / "artifact", target, b"manifest 2")
    newer.release()
    with pytest.raises(RetryableError) as caught:
        publish_artifact(older, older.scratch / "artifact", target, b"manifest 1")
    assert caught.value.failure.reason == "Fenced"
    assert (target / MANIFEST).read_bytes() == b"manifest 2"
    assert (target / "model").read_text() == "attempt 2"
    assert {path.name for path in target.iterdir()} == {"model", MANIFEST}


def test_an_empty_claim_file_of_a_dead_process_counts(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "3").touch()
    with pytest.raises(RetryableError) as caught:
        Attempt(tmp_path, 3).claim()
    assert caught.value.failure.reason == "AttemptAlreadyClaimed"
    Attempt(tmp_path, 2).claim()
    with pytest.raises(RetryableError) as caught:
        Attempt(tmp_path, 2).require_newest()
    assert caught.value.failure.reason == "Fenced"


def test_stages_do_not_fence_each_other(tmp_path: Path) -> None:
    Attempt(tmp_path, 7).claim()
    with Attempt(tmp_path, 1, "evaluate") as attempt:
        attempt.publish_file(tmp_path / "report.json", b"{}")
    assert (tmp_path / "report.json").read_bytes() == b"{}"
    assert not list(tmp_path.glob(".evaluate-*"))


def test_an_attempt_that_fails_because_it_was_replaced_is_fenced(tmp_path: Path) -> None:
    def fail() -> None:
        with Attempt(tmp_path, 1, "evaluate") as attempt:
            Attempt(tmp_path, 2, "evaluate").claim()
            (attempt.scratch / "half").write_text("its folder is gone")

    with pytest.raises(RetryableError) as caught:
        fail()
    assert caught.value.failure.reason == "Fenced"


def test_a_missing_workspace_is_not_mistaken_for_a_later_attempt(tmp_path: Path) -> None:
    job = tmp_path / "job"
    attempt = Attempt(job, 1)
    attempt.claim()
    shutil.rmtree(job)
    with pytest.raises(RetryableError) as caught:
        attempt.publish_file(job / "report.json", b"{}")
    assert caught.value.failure.reason == "VolumeUnavailable"
    assert caught.value.failure.file == str(job)


def test_names_that_are_no_attempt_numbers_fence_no_attempt(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 1)
    attempt.claim()
    for name in ("²", "٣", "2.bak", "-5", "evaluate-²"):
        (tmp_path / "claims" / name).touch()
    (tmp_path / ".train-²").mkdir()
    attempt.require_newest()
    Attempt(tmp_path, 2).claim()
    assert (tmp_path / ".train-²").is_dir()


def test_one_of_many_processes_acquires_an_attempt(tmp_path: Path) -> None:
    children = []
    start = time.time() + 0.2
    for _ in range(8):
        child = os.fork()
        if not child:
            while time.time() < start:
                pass
            try:
                Attempt(tmp_path, 1).claim()
                os._exit(0)
            except RetryableError:
                os._exit(FENCED)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, *[FENCED] * 7]


def save_after_replacement(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.wait_until_saved()
    assert rank.saver.poll()["last_checkpoint_step"] == 1
    if dist.get_rank() == 0:
        Attempt(job, 2).claim()
    collectives.barrier()
    rank.step(2)
    rank.saver.save(TrainerState(2))
    with pytest.raises(RetryableError) as caught:
        rank.saver.wait_until_saved()
    assert caught.value.failure.reason == "Fenced"
    assert steps_of(job) == [1]


def test_an_attempt_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    pool.run(in_process_group, save_after_replacement, tmp_path, world=2, folder=tmp_path / "logs")


def test_a_stale_handle_of_the_scratch_folder_is_a_replacement(tmp_path: Path) -> None:
    """Over NFS the folder that the later attempt removed is no missing file."""
    older = Attempt(tmp_path, 1)
    older.claim()
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    with pytest.raises(OSError, match="Stale"), older.fencing_errors():
        raise stale
    Attempt(tmp_path, 2).claim()
    with pytest.raises(RetryableError) as caught, older.fencing_errors():
        raise stale
    assert caught.value.failure.reason == "Fenced"


def test_an_attempt_starts_only_once(tmp_path: Path) -> None:
    Attempt(tmp_path, 1).claim()
    with pytest.raises(RetryableError) as caught:
        Attempt(tmp_path, 1).claim()
    assert caught.value.failure.reason == "AttemptAlreadyClaimed"
