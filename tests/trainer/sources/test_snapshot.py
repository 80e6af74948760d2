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
from finetune_trainer.runtime.fsync import seal
from finetune_trainer.sources import Address, Credentials, snapshot
from finetune_trainer.sources.cache import MARK, find_complete, lease_of
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
from finetune_trainer.sources.cache import MARK, find_complete, lease_of
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.snapshot import open_snapshot

class Stopped(BaseException):
    pass

Lease.BEAT, Lease.POLL, Lease.SILENCE = 0.1, 0.1, 5.0

def stop(number, frame):
    raise Stopped

signal.signal(signal.SIGTERM, stop)
name, url, cache, revision = sys.argv[1:]
address = Address("model", "hf://acme/tiny", revision, Credentials({"HF_ENDPOINT": url}))
tell = lambda message, done, total: print(message, flush=True)
try:
    snapshot = open_snapshot(address, Path("/nonexistent"), Path(cache), name, tell)
    snapshot.fetch_small_files()
    print("whole in", snapshot.finish(), flush=True)
except Stopped:
    sys.exit(76)
"""


class Job:
    """One process that fetches the model, and what it tells."""

    def __init__(self, name: str, hub: Hub, cache: Path, revision: str = "main") -> None:
        self.said: list[str] = []
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
        with self.process.stdout as told:
            for line in told:
                self.said.append(line.strip())

    def ends(self) -> int:
        """Its exit code."""
        code = self.process.wait(60)
        self._reader.join()
        return code

    def says(self, text: str) -> bool:
        """Whether it has told this."""
        return any(text in line for line in self.said)


def until(what: Callable[[], object], *jobs: Job) -> None:
    """Wait until it is so, while the jobs run."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        for job in jobs:
            assert job.process.poll() is None, job.said
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
        job.ends()


def at_the_weights(hub: Hub) -> bool:
    return WEIGHTS in hub.fetched


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_second_job_waits_and_every_file_is_fetched_once(
    hub: Hub, cache: Path, start: Start
) -> None:
    first = start("first")
    until(lambda: at_the_weights(hub), first)
    second = start("second")
    until(lambda: second.says("waiting for job first, which downloads the same model"), second)
    hub.gates[WEIGHTS].set()
    assert (first.ends(), second.ends()) == (0, 0), (first.said, second.said)
    assert set(Counter(hub.fetched).values()) == {1}
    assert left_in(cache) == {COMMIT[:16]}
    assert find_complete(cache, COMMIT)


def test_job_goes_on_where_a_killed_one_was(hub: Hub, cache: Path, start: Start) -> None:
    first = start("first")
    until(lambda: at_the_weights(hub), first)
    second = start("second")
    until(lambda: second.says("waiting for job first"), second)
    first.process.kill()
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    hub.gates[WEIGHTS].set()
    assert second.ends() == 0, second.said
    assert left_in(cache) == {COMMIT[:16]}
    assert find_complete(cache, COMMIT)


def test_job_that_was_frozen_finds_what_the_other_one_fetched(
    hub: Hub, cache: Path, start: Start, tiny_model_folder: Path
) -> None:
    first = start("first")
    until(lambda: at_the_weights(hub), first)
    second = start("second")
    until(lambda: second.says("waiting for job first"), second)
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    first.process.send_signal(signal.SIGCONT)
    hub.gates[WEIGHTS].set()
    assert (first.ends(), second.ends()) == (0, 0), (first.said, second.said)
    assert left_in(cache) == {COMMIT[:16]}
    fetched = (cache / COMMIT[:16] / WEIGHTS).read_bytes()
    assert fetched == (tiny_model_folder / WEIGHTS).read_bytes()


def test_job_that_waits_ends_at_once_when_asked_to(hub: Hub, cache: Path, start: Start) -> None:
    first = start("first")
    until(lambda: at_the_weights(hub), first)
    second = start("second")
    until(lambda: second.says("waiting for job first"), second)
    before = time.monotonic()
    second.process.terminate()
    assert second.ends() == 76
    assert time.monotonic() - before < 30


def test_other_revision_does_not_wait(hub: Hub, cache: Path, start: Start) -> None:
    first = start("first")
    until(lambda: at_the_weights(hub), first)
    tiny = hub.repositories["acme/tiny"]
    other = "beef" + "0" * 36
    hub.repositories["acme/tiny"] = Repository(tiny.folder, commit=other)
    second = start("second", other)
    until(lambda: hub.fetched.count(WEIGHTS) == 2, second)
    hub.gates[WEIGHTS].set()
    assert second.ends() == 0, second.said
    assert not second.says("waiting")
    assert find_complete(cache, other)


def test_progress_tells_whom_a_job_waits_for(world: World) -> None:
    cache = world.root / "cache"
    cache.mkdir()
    other = lease_of(cache, COMMIT, "other")
    assert other.take_if_free()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(world.prepare)
        until(lambda: "waiting for job other" in world.report.snapshot().message)
        other.give_back()
        assert result.result(60).outcome == "Succeeded"


def test_turn_is_free_again_when_it_is_given_back(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, "a", "one"), Lease(tmp_path, "a", "two")
    assert first.take_if_free()
    assert not second.take_if_free()
    assert Lease(tmp_path, "b", "three").take_if_free()
    first.give_back()
    assert second.take_if_free()
    assert not second.after_silence
    assert not second.lost()


def test_holder_that_shows_life_is_never_passed_over(tmp_path: Path) -> None:
    class Quick(Lease):
        BEAT, POLL, SILENCE = 0.05, 0.05, 3.0

    first, seen = Quick(tmp_path, "a", "one"), Counter[str]()

    def waits(holder: str) -> None:
        seen[holder] += 1
        if seen[holder] == 90:  # longer than a silent one would be waited for
            assert not first.lost()
            first.give_back()

    assert first.take_if_free()
    with Quick(tmp_path, "a", "two").held(waits) as second:
        assert not second.after_silence
    assert seen["one"] >= 90


def test_turn_that_is_taken_but_not_listed_yet_is_not_asked_for_without_a_pause(
    tmp_path: Path,
) -> None:
    """Clients of NFS see new names late."""

    class Late(Lease):
        POLL = 0.05
        looks = 0

        def _newest(self) -> int:
            self.looks += 1
            return 0 if self.looks <= 20 else super()._newest()

    first = Lease(tmp_path, "a", "one")
    assert first.take_if_free()
    second, asked = Late(tmp_path, "a", "two"), time.monotonic()
    with second.held(lambda _: first.give_back()):
        assert time.monotonic() - asked >= 10 * Late.POLL


def test_job_that_was_passed_over_before_it_publishes_moves_nothing_of_the_other_one(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address("model", "hf://acme/tiny", "main", Credentials({"HF_ENDPOINT": hub.url}))
    frozen = open_snapshot(address, Path("/nonexistent"), cache, "first", lambda *_: None)
    frozen.fetch_small_files()
    kept: list[int] = []

    def seal_and_freeze(folder: Path) -> None:
        seal(folder)
        if not kept:
            # Meanwhile another job takes the turn, and with it all that was gathered.
            other = lease_of(cache, COMMIT, "second")
            silent = max(int(each.name.rsplit("-", 1)[1]) for each in cache.glob(".turn-*"))
            assert other._take(dead=silent)
            folder.rename(cache / COMMIT[:16])
            kept.append((cache / COMMIT[:16]).stat().st_ino)
            other.give_back()

    monkeypatch.setattr(snapshot, "seal", seal_and_freeze)
    assert frozen.finish() == cache / COMMIT[:16]
    assert [(cache / COMMIT[:16]).stat().st_ino] == kept
    assert hub.fetched.count(WEIGHTS) == 1
    assert left_in(cache) == {COMMIT[:16]}


def gathering(hub: Hub, cache: Path) -> snapshot.Snapshot:
    """A job that has all but the weights."""
    address = Address("model", "hf://acme/tiny", "main", Credentials({"HF_ENDPOINT": hub.url}))
    found = open_snapshot(address, Path("/nonexistent"), cache, "second", lambda *_: None)
    assert isinstance(found, snapshot.Snapshot)
    found.fetch_small_files()
    return found


def test_model_that_another_job_has_published_just_now_is_used_and_not_replaced(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever published it reads it already."""
    final = cache / COMMIT[:16]
    job = gathering(hub, cache)

    def seal_after_another(folder: Path) -> None:
        seal(folder)
        shutil.copytree(folder, final)
        kept.append((final / WEIGHTS).stat().st_ino)

    kept: list[int] = []
    monkeypatch.setattr(snapshot, "seal", seal_after_another)
    assert job.finish() == final
    assert [(final / WEIGHTS).stat().st_ino] == kept
    assert left_in(cache) == {COMMIT[:16]}


def test_what_was_gathered_may_be_published_while_another_job_wants_to_take_it(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = cache / COMMIT[:16]
    job = gathering(hub, cache)
    gathered = next(cache.glob(".partial-*"))

    def publish_while_it_is_looked_at(folder: Path) -> int:
        if not final.exists():
            gathered.rename(final)
        return 0

    monkeypatch.setattr(snapshot, "bytes_below", publish_while_it_is_looked_at)
    assert job.finish() == final
    assert find_complete(cache, COMMIT)


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b"{}", b'{"files": {"x": 1}}'])
def test_snapshot_with_a_broken_mark_is_fetched_again(hub: Hub, cache: Path, mark: bytes) -> None:
    final = gathering(hub, cache).finish()
    (final / MARK).write_bytes(mark)
    assert gathering(hub, cache).finish() == final
    assert find_complete(cache, COMMIT) == final
    assert left_in(cache) == {COMMIT[:16]}


def test_what_was_gathered_is_forgotten_without_a_word_where_the_cache_has_gone(
    hub: Hub, cache: Path
) -> None:
    """The fault that it is forgotten for is told, and no other."""
    job = gathering(hub, cache)
    shutil.rmtree(cache)
    job.discard()
    assert not cache.exists()
