"""Jobs that want the same model at the same time: real processes, one cache, one counting hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from finetune_trainer.runtime.fsync import fsync_tree
from finetune_trainer.sources import Address, Credentials, snapshot
from finetune_trainer.sources.cache import MARKER, find_snapshot, revision_lease
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.snapshot import open_snapshot

from tests.trainer.prepare_world import World
from tests.trainer.servers import COMMIT, Hub, Repository

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = "model.safetensors"
JOB = """
import signal, sys
from pathlib import Path
from finetune_trainer.sources import Address, Credentials
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.snapshot import open_snapshot

class Stopped(BaseException):
    pass

Lease.BEAT_SECONDS, Lease.POLL_SECONDS, Lease.SILENT_SECONDS = 0.1, 0.1, 5.0

def stop(number, frame):
    raise Stopped

signal.signal(signal.SIGTERM, stop)
name, url, cache, revision = sys.argv[1:]
address = Address("model", "hf://acme/tiny", revision, Credentials({"HF_ENDPOINT": url}))
report = lambda message, done, total: print(message, flush=True)
try:
    snapshot = open_snapshot(address, Path("/nonexistent"), Path(cache), name, report)
    snapshot.fetch_small_files()
    print("complete in", snapshot.fetch_all_files(), flush=True)
except Stopped:
    sys.exit(76)
"""


class Job:
    """One process that fetches the model, and its output."""

    def __init__(self, name: str, hub: Hub, cache: Path, revision: str = "main") -> None:
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, name, hub.url, str(cache), revision],
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output.append(line.strip())

    def wait_for_exit(self) -> int:
        """Its exit code."""
        code = self.process.wait(60)
        self._reader.join()
        return code

    def has_printed(self, text: str) -> bool:
        return any(text in line for line in self.output)


def until(condition: Callable[[], object], *jobs: Job) -> None:
    """Wait for the condition, while the jobs run."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        for job in jobs:
            assert job.process.poll() is None, job.output
        time.sleep(0.02)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


Start = Callable[..., Job]


@pytest.fixture
def start(hub: Hub, cache: Path) -> Iterator[Start]:
    """Starts jobs; the content of the weights waits until a test opens the gate."""
    hub.gates[WEIGHTS] = threading.Event()
    jobs: list[Job] = []

    def begin(name: str, revision: str = "main") -> Job:
        jobs.append(Job(name, hub, cache, revision))
        return jobs[-1]

    yield begin
    hub.gates[WEIGHTS].set()
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            job.process.kill()
        job.wait_for_exit()


def has_requested_weights(hub: Hub) -> bool:
    return WEIGHTS in hub.fetched


def folder_names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_second_job_waits_and_every_file_is_fetched_once(
    hub: Hub, cache: Path, start: Start
) -> None:
    first = start("first")
    until(lambda: has_requested_weights(hub), first)
    second = start("second")
    until(
        lambda: second.has_printed("waiting for job first, which downloads the same model"), second
    )
    hub.gates[WEIGHTS].set()
    assert (first.wait_for_exit(), second.wait_for_exit()) == (0, 0), (first.output, second.output)
    assert set(Counter(hub.fetched).values()) == {1}
    assert folder_names(cache) == {COMMIT[:16]}
    assert find_snapshot(cache, COMMIT)


def test_job_continues_the_download_of_a_killed_one(hub: Hub, cache: Path, start: Start) -> None:
    first = start("first")
    until(lambda: has_requested_weights(hub), first)
    second = start("second")
    until(lambda: second.has_printed("waiting for job first"), second)
    first.process.kill()
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    hub.gates[WEIGHTS].set()
    assert second.wait_for_exit() == 0, second.output
    assert folder_names(cache) == {COMMIT[:16]}
    assert find_snapshot(cache, COMMIT)


def test_job_that_was_frozen_uses_the_download_of_the_other_one(
    hub: Hub, cache: Path, start: Start, tiny_model_folder: Path
) -> None:
    first = start("first")
    until(lambda: has_requested_weights(hub), first)
    second = start("second")
    until(lambda: second.has_printed("waiting for job first"), second)
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    first.process.send_signal(signal.SIGCONT)
    hub.gates[WEIGHTS].set()
    assert (first.wait_for_exit(), second.wait_for_exit()) == (0, 0), (first.output, second.output)
    assert folder_names(cache) == {COMMIT[:16]}
    fetched = (cache / COMMIT[:16] / WEIGHTS).read_bytes()
    assert fetched == (tiny_model_folder / WEIGHTS).read_bytes()


def test_job_that_waits_ends_at_once_when_a_stop_is_requested(
    hub: Hub, cache: Path, start: Start
) -> None:
    first = start("first")
    until(lambda: has_requested_weights(hub), first)
    second = start("second")
    until(lambda: second.has_printed("waiting for job first"), second)
    before = time.monotonic()
    second.process.terminate()
    assert second.wait_for_exit() == 76
    assert time.monotonic() - before < 30


def test_other_revision_does_not_wait(hub: Hub, cache: Path, start: Start) -> None:
    first = start("first")
    until(lambda: has_requested_weights(hub), first)
    tiny = hub.repositories["acme/tiny"]
    other = "beef" + "0" * 36
    hub.repositories["acme/tiny"] = Repository(tiny.folder, commit=other)
    second = start("second", other)
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    hub.gates[WEIGHTS].set()
    assert second.wait_for_exit() == 0, second.output
    assert not second.has_printed("waiting")
    assert find_snapshot(cache, other)


def test_progress_names_the_job_that_has_the_lease(world: World) -> None:
    cache = world.root / "cache"
    cache.mkdir()
    other = revision_lease(cache, COMMIT, "other")
    assert other.try_acquire()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(world.prepare)
        until(lambda: "waiting for job other" in world.report.snapshot().message)
        other.release()
        assert result.result(60).outcome == "Succeeded"


def test_lease_is_free_again_when_it_is_released(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, "a", "one"), Lease(tmp_path, "a", "two")
    assert first.try_acquire()
    assert not second.try_acquire()
    assert Lease(tmp_path, "b", "three").try_acquire()
    first.release()
    assert second.try_acquire()
    assert not second.took_over
    assert not second.is_lost()


def test_holder_that_beats_never_loses_the_lease(tmp_path: Path) -> None:
    class Quick(Lease):
        BEAT_SECONDS, POLL_SECONDS, SILENT_SECONDS = 0.05, 0.05, 3.0

    first, waits = Quick(tmp_path, "a", "one"), Counter[str]()

    def count_wait(holder: str) -> None:
        waits[holder] += 1
        if waits[holder] == 90:  # longer than it would take to replace a silent holder
            assert not first.is_lost()
            first.release()

    assert first.try_acquire()
    with Quick(tmp_path, "a", "two").hold(count_wait) as second:
        assert not second.took_over
    assert waits["one"] >= 90


def test_lease_whose_file_is_not_listed_yet_is_requested_with_pauses(
    tmp_path: Path,
) -> None:
    """NFS clients see new names late."""

    class Late(Lease):
        POLL_SECONDS = 0.05
        reads = 0

        def _newest_number(self) -> int:
            self.reads += 1
            return 0 if self.reads <= 20 else super()._newest_number()

    first = Lease(tmp_path, "a", "one")
    assert first.try_acquire()
    second, started = Late(tmp_path, "a", "two"), time.monotonic()
    with second.hold(lambda _: first.release()):
        assert time.monotonic() - started >= 10 * Late.POLL_SECONDS


def test_job_that_lost_the_lease_before_it_publishes_moves_no_file_of_the_other_one(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address("model", "hf://acme/tiny", "main", Credentials({"HF_ENDPOINT": hub.url}))
    frozen = open_snapshot(address, Path("/nonexistent"), cache, "first", lambda *_: None)
    frozen.fetch_small_files()
    kept: list[int] = []

    def sync_and_freeze(folder: Path) -> None:
        fsync_tree(folder)
        if not kept:
            # Meanwhile another job takes the lease and the downloaded files.
            other = revision_lease(cache, COMMIT, "second")
            silent = max(int(each.name.rsplit("-", 1)[1]) for each in cache.glob(".turn-*"))
            assert other._acquire(dead=silent)
            folder.rename(cache / COMMIT[:16])
            kept.append((cache / COMMIT[:16]).stat().st_ino)
            other.release()

    monkeypatch.setattr(snapshot, "fsync_tree", sync_and_freeze)
    assert frozen.fetch_all_files() == cache / COMMIT[:16]
    assert [(cache / COMMIT[:16]).stat().st_ino] == kept
    assert hub.fetched.count(WEIGHTS) == 1
    assert folder_names(cache) == {COMMIT[:16]}


def start_download(hub: Hub, cache: Path) -> snapshot.Snapshot:
    """A job that has everything but the weights."""
    address = Address("model", "hf://acme/tiny", "main", Credentials({"HF_ENDPOINT": hub.url}))
    found = open_snapshot(address, Path("/nonexistent"), cache, "second", lambda *_: None)
    assert isinstance(found, snapshot.Snapshot)
    found.fetch_small_files()
    return found


def test_model_that_another_job_has_just_published_is_used_and_not_replaced(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that published it reads it already."""
    final = cache / COMMIT[:16]
    job = start_download(hub, cache)

    def sync_after_another(folder: Path) -> None:
        fsync_tree(folder)
        shutil.copytree(folder, final)
        kept.append((final / WEIGHTS).stat().st_ino)

    kept: list[int] = []
    monkeypatch.setattr(snapshot, "fsync_tree", sync_after_another)
    assert job.fetch_all_files() == final
    assert [(final / WEIGHTS).stat().st_ino] == kept
    assert folder_names(cache) == {COMMIT[:16]}


def test_partial_download_may_be_published_while_another_job_takes_it_over(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = cache / COMMIT[:16]
    job = start_download(hub, cache)
    partial = next(cache.glob(".partial-*"))

    def publish_while_it_is_measured(folder: Path) -> int:
        if not final.exists():
            partial.rename(final)
        return 0

    monkeypatch.setattr(snapshot, "folder_bytes", publish_while_it_is_measured)
    assert job.fetch_all_files() == final
    assert find_snapshot(cache, COMMIT)


@pytest.mark.parametrize("marker", [b"", b"{", b"[]", b"{}", b'{"files": {"x": 1}}'])
def test_snapshot_with_a_broken_marker_is_fetched_again(
    hub: Hub, cache: Path, marker: bytes
) -> None:
    final = start_download(hub, cache).fetch_all_files()
    (final / MARKER).write_bytes(marker)
    assert start_download(hub, cache).fetch_all_files() == final
    assert find_snapshot(cache, COMMIT) == final
    assert folder_names(cache) == {COMMIT[:16]}


def test_discarding_a_download_in_a_missing_cache_is_no_error(hub: Hub, cache: Path) -> None:
    """The error for which the download is discarded is the one to report."""
    job = start_download(hub, cache)
    shutil.rmtree(cache)
    job.discard()
    assert not cache.exists()
