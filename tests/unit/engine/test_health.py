from __future__ import annotations

import asyncio
from urllib.error import HTTPError
from urllib.request import urlopen

from finetune_operator.engine.health import Health, serve_health
from finetune_operator.engine.metrics import Metrics


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_standby_stays_healthy_and_ready() -> None:
    clock = Clock()
    health = Health(clock=clock)
    clock.now += 10_000
    assert health.liveness_problem() is None
    assert health.readiness_problem() is None


def test_a_leader_is_not_ready_before_its_cache_is_complete() -> None:
    health = Health(clock=Clock())
    health.set_leading()
    assert health.readiness_problem() == "the first lists are not complete"
    assert health.liveness_problem() is None
    health.set_synced()
    assert health.readiness_problem() is None


def test_a_leader_whose_watch_is_silent_for_a_minute_fails_the_liveness_check() -> None:
    clock = Clock()
    health = Health(clock=clock)
    health.set_leading()
    health.expect_echoes()
    clock.now += 59
    assert health.liveness_problem() is None
    health.record_echo()
    clock.now += 61
    assert "the watch is dead" in (health.liveness_problem() or "")
    assert health.record_echo() == 61
    assert health.liveness_problem() is None


async def test_the_http_endpoints_report_liveness_and_readiness() -> None:
    clock, metrics = Clock(), Metrics()
    health = Health(clock=clock)
    runner = await serve_health(health, metrics, 0)
    port = next(address[1] for address in runner.addresses if "." in address[0])

    def status(path: str) -> int:
        try:
            with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return int(error.code)

    try:
        health.expect_echoes()
        paths = ("/healthz", "/readyz", "/metrics")
        assert [await asyncio.to_thread(status, path) for path in paths] == [200, 200, 200]
        clock.now += 61
        assert [await asyncio.to_thread(status, path) for path in paths] == [503, 503, 200]
    finally:
        await runner.cleanup()


async def test_it_answers_on_the_ipv6_address_of_a_pod() -> None:
    runner = await serve_health(Health(), Metrics(), 0)
    port = next(address[1] for address in runner.addresses if ":" in address[0])

    def get_status() -> int:
        with urlopen(f"http://[::1]:{port}/healthz", timeout=5) as answer:
            return int(answer.status)

    try:
        assert await asyncio.to_thread(get_status) == 200
    finally:
        await runner.cleanup()


def test_a_process_that_cannot_lead_is_alive_but_not_ready() -> None:
    health = Health(clock=Clock())
    health.set_unready_reason("the CRDs are old")
    assert health.readiness_problem() == "the CRDs are old"
    assert health.liveness_problem() is None
    health.set_unready_reason(None)
    assert health.readiness_problem() is None
