from __future__ import annotations

import asyncio
import random

from finetune_operator.decision import Key
from finetune_operator.engine.metrics import Metrics, QueueMetrics
from finetune_operator.engine.workqueue import BASE_DELAY, MAX_DELAY, WorkQueue, run_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.unit.engine import virtual_time

A = Key("FineTuneJob", "default", "a")
B = Key("FineTuneJob", "default", "b")


def new_queue() -> WorkQueue:
    return WorkQueue(QueueMetrics(CollectorRegistry()), random.Random(1))


def test_a_key_added_twice_is_handed_out_once() -> None:
    async def main() -> None:
        queue = new_queue()
        queue.add(A)
        queue.add(B)
        queue.add(A)
        assert [await queue.get(), await queue.get()] == [A, B]
        assert queue.depth == 0

    virtual_time.run(main())


def test_a_key_added_while_it_runs_runs_once_more_afterwards() -> None:
    async def main() -> None:
        queue = new_queue()
        queue.add(A)
        assert await queue.get() == A
        queue.add(A)
        queue.add(A)
        assert queue.depth == 0, "it must not run twice at a time"
        queue.done(A)
        assert queue.depth == 1
        assert await queue.get() == A
        queue.done(A)
        assert queue.is_idle

    virtual_time.run(main())


def test_the_earliest_timer_wins_and_a_run_cancels_it() -> None:
    async def main() -> list[float]:
        queue, loop = new_queue(), asyncio.get_running_loop()
        queue.add_after(A, 30)
        queue.add_after(A, 10)
        queue.add_after(A, 20)
        assert await queue.get() == A
        seen = [loop.time()]
        queue.done(A)
        queue.add_after(A, 50)
        queue.add(A)  # an event before the timer
        assert await queue.get() == A
        seen.append(loop.time())
        queue.done(A)
        queue.add_after(B, 200)
        assert await queue.get() == B, "the timer of A was cancelled by its run"
        return [*seen, loop.time()]

    assert virtual_time.run(main()) == [10, 10, 210]


def test_a_retry_waits_at_least_as_long_as_the_server_wants() -> None:
    async def main() -> float:
        queue = new_queue()
        assert queue.add_rate_limited(A, at_least=5.0) == 5.0
        assert await queue.get() == A
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == 5.0


def test_errors_back_off_from_a_tenth_of_a_second_to_a_minute() -> None:
    async def main() -> list[float]:
        queue = new_queue()
        delays = [queue.add_rate_limited(A) for _ in range(14)]
        queue.forget(A)
        return [*delays, queue.add_rate_limited(A)]

    delays = virtual_time.run(main())
    for number, delay in enumerate(delays[:-1]):
        full = min(MAX_DELAY, BASE_DELAY * 2**number)
        assert full / 2 <= delay <= full
    assert delays[-1] <= BASE_DELAY


def test_a_closed_queue_hands_out_no_key_and_running_reconciles_end() -> None:
    async def main() -> list[str]:
        queue, ended = new_queue(), []
        for name in ("a", "b", "c"):
            queue.add(Key("FineTuneJob", "default", name))

        async def run(key: Key) -> None:
            await asyncio.sleep(5)
            ended.append(key.name)

        workers = asyncio.create_task(run_workers(queue, run, 2))
        await asyncio.sleep(1)
        queue.close()
        await workers
        return ended

    assert virtual_time.run(main()) == ["a", "b"]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 20),
            st.integers(0, 4),
            st.sampled_from(["add", "add_after", "add_rate_limited"]),
            st.floats(0.01, 5),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_every_add_is_followed_by_a_run_and_no_key_runs_twice_at_a_time(
    script: list[tuple[float, int, str, float]], workers: int
) -> None:
    async def main() -> None:
        queue, loop = new_queue(), asyncio.get_running_loop()
        running: set[Key] = set()
        started: dict[Key, float] = {}

        async def run(key: Key) -> None:
            assert key not in running
            running.add(key)
            assert len(running) <= workers
            started[key] = loop.time()
            await asyncio.sleep(0.3)
            running.remove(key)

        task = asyncio.create_task(run_workers(queue, run, workers))
        last: dict[Key, float] = {}
        for at, number, verb, delay in sorted(script):
            await asyncio.sleep(max(0.0, at - loop.time()))
            key = Key("FineTuneJob", "default", str(number))
            last[key] = loop.time()
            if verb == "add_after":
                queue.add_after(key, delay)
            else:
                getattr(queue, verb)(key)
        await asyncio.sleep(100)
        assert queue.is_idle
        queue.close()
        await task
        for key, at in last.items():
            assert started[key] >= at, "no run started after the last add"

    virtual_time.run(main())


def test_the_metrics_have_the_names_of_controller_runtime() -> None:
    async def main() -> str:
        metrics = Metrics()
        queue = WorkQueue(metrics.queue)
        queue.add(A)
        await queue.get()
        queue.done(A)
        queue.add_rate_limited(B)
        return metrics.render().decode()

    text = virtual_time.run(main())
    for name in (
        'workqueue_depth{name="finetune"} 0.0',
        'workqueue_adds_total{name="FineTuneJob"} 1.0',
        'workqueue_retries_total{name="FineTuneJob"} 1.0',
        'workqueue_queue_duration_seconds_count{name="FineTuneJob"} 1.0',
        'workqueue_work_duration_seconds_count{name="FineTuneJob"} 1.0',
        "controller_runtime_reconcile_time_seconds",
    ):
        assert name in text
    assert "_created" not in text
