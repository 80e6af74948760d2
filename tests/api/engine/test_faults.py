"""An API server that is slow, overloaded, wrong or cut off: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from finetune_operator.decision import Decision, Key, ObjectRef, View
from finetune_operator.engine import controller, watch
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.reconciler import REPORT_AFTER_FAILURES
from finetune_operator.engine.server_clock import ServerClock

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.conftest import Bench
from tests.api.engine.gateway import RESET, Choose, Fault, Gateway
from tests.api.engine.whole import prepared, running, until

CHILDREN = ["ConfigMap a-prepare-1", "Job a-prepare-1"]
WRITES = {"PATCH status", "POST configmaps", "POST jobs"}
"""The writes of the tiny controller, by method and the end of the path."""


def status(code: int, reason: str) -> Fault:
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": "no"}
    return Fault(
        status=code,
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Retry-After": "1"} if code == 429 else {},
    )


FAULTS = {
    "429 with Retry-After": status(429, "TooManyRequests"),
    "500": status(500, "InternalError"),
    "409": status(409, "Conflict"),
    "a proxy's 502 in HTML": Fault(status=502, body=b"<html>Bad Gateway</html>"),
    "a page in place of the answer": Fault(body=b"<html>Log in</html>"),
    "other JSON in place of the answer": Fault(body=b"[]"),
    "half an answer": Fault(cut=40),
    "no answer though it was carried out": Fault(cut=0),
    "a reset before it was carried out": RESET,
    "an answer after three seconds": Fault(delay=3),
}


@pytest.fixture
async def gateway(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with Gateway(control_plane, tmp_path) as gateway:
        yield gateway


@pytest.fixture
async def behind(gateway: Gateway, namespace: str) -> AsyncIterator[Bench]:
    """A reconciler that reaches the API server through the gateway only."""
    client = await KubeClient.connect(str(gateway.kubeconfig))
    yield Bench(client, namespace)
    await client.close()


def once_each(fault: Fault, met: set[str]) -> Choose:
    """The fault for the first request of every write of the controller; `met` collects those that
    had it."""

    def choose(request: web.BaseRequest) -> Fault | None:
        what = f"{request.method} {request.path.rpartition('/')[2]}"
        if what not in WRITES - met:
            return None
        met.add(what)
        return fault

    return choose


def children(api: Api, namespace: str) -> list[str]:
    return sorted(
        f"{kind} {found['metadata']['name']}"
        for kind in ("ConfigMap", "Job")
        for found in api.list(kind, namespace)
    )


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_write_that_fails_once_is_carried_out_exactly_once(
    gateway: Gateway, api: Api, namespace: str, log: io.StringIO, fault: str
) -> None:
    met: set[str] = set()
    gateway.choose = once_each(FAULTS[fault], met)
    async with running(gateway.kubeconfig, Health(), namespace, namespace):
        api.create(toy.finetune_job(namespace, "a"))
        took = await until(
            "the job is prepared",
            lambda: prepared(api, "a", namespace)() and children(api, namespace) == CHILDREN,
        )
        print(f"\n{fault}: every write carried out once after {took:.1f} s")
    assert met == WRITES, "the others were not tested"
    assert "Traceback" not in log.getvalue()
    reasons = [each["reason"] for each in api.list("Event", namespace)]
    assert Counter(reasons)["Preparing"] <= 1, "an event is recorded once"


@pytest.mark.parametrize("fault", ["500", "409"])
async def test_a_child_that_cannot_be_created_for_long_is_reported_until_it_can(
    gateway: Gateway, behind: Bench, api: Api, namespace: str, fault: str
) -> None:
    """The API server answers 500 for a webhook that is down, 409 for a contended quota."""
    api.create(toy.finetune_job(namespace, "a"))
    await behind.list()

    def fail_creation_of_job(request: web.BaseRequest) -> Fault | None:
        creates_job = request.method == "POST" and request.path.endswith("/jobs")
        return FAULTS[fault] if creates_job else None

    gateway.choose = fail_creation_of_job
    assert await behind.reconcile(toy.reconcile, "a") == "error"
    assert "message" not in api.get("FineTuneJob", namespace, "a")["status"], (
        "it may take a moment only"
    )
    for _ in range(REPORT_AFTER_FAILURES):
        assert await behind.reconcile(toy.reconcile, "a") == "error"

    reported = api.get("FineTuneJob", namespace, "a")
    [stalled] = [c for c in reported["status"]["conditions"] if c["type"] == "Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("True", "ApiError")
    assert f"/namespaces/{namespace}/jobs: {fault} no" in reported["status"]["message"]
    await behind.reconcile(toy.reconcile, "a")
    again = api.get("FineTuneJob", namespace, "a")
    assert again["metadata"]["resourceVersion"] == reported["metadata"]["resourceVersion"]

    gateway.choose = lambda _request: None
    await behind.reconcile(toy.reconcile, "a")
    assert children(api, namespace) == CHILDREN
    assert "message" not in api.get("FineTuneJob", namespace, "a")["status"]


async def test_an_exception_of_a_reconcile_function_is_reported_in_the_status(
    behind: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await behind.list()

    def fail(_key: Key, _view: View, _now: datetime) -> Decision:
        raise KeyError("not foreseen")

    assert await behind.reconcile(fail, "a") == "error"
    status = api.get("FineTuneJob", namespace, "a")["status"]
    assert "KeyError: 'not foreseen'" in status["message"]
    [stalled] = [c for c in status["conditions"] if c["type"] == "Stalled"]
    assert stalled["reason"] == "InternalError"


async def test_a_delete_whose_answer_was_lost_is_carried_out(
    behind: Bench, gateway: Gateway, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    child = api.create(toy.config_map(job))
    await behind.list()

    def reconcile(_key: Key, view: View, _now: datetime) -> Decision:
        ref = ObjectRef("ConfigMap", namespace, "a-prepare-1", child["metadata"]["uid"])
        there = view.get("ConfigMap", namespace, "a-prepare-1") is not None
        return Decision(delete=(ref,) if there else ())

    gateway.choose = lambda request: Fault(cut=0) if request.method == "DELETE" else None
    assert await behind.reconcile(reconcile, "a") == "error"
    assert not api.list("ConfigMap", namespace)
    gateway.choose = lambda _request: None
    await behind.reconcile(reconcile, "a")
    assert behind.cache.get("ConfigMap", namespace, "a-prepare-1") is None
    assert await behind.reconcile(reconcile, "a") == "success"


async def test_a_status_whose_answer_was_lost_is_not_written_twice(
    behind: Bench, gateway: Gateway, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await behind.list()
    gateway.choose = lambda request: Fault(cut=0) if request.method == "PATCH" else None
    assert await behind.reconcile(toy.reconcile, "a") == "error"
    written = api.get("FineTuneJob", namespace, "a")
    assert written["status"]["phase"] == "Preparing"
    assert children(api, namespace) == [], (
        "no child is created for a status that may not be written"
    )

    gateway.choose = lambda _request: None
    assert await behind.reconcile(toy.reconcile, "a") == "conflict"
    await behind.list()
    await behind.reconcile(toy.reconcile, "a")
    assert children(api, namespace) == CHILDREN
    now = api.get("FineTuneJob", namespace, "a")["metadata"]
    assert now["resourceVersion"] == written["metadata"]["resourceVersion"]


async def test_an_expired_watch_is_restarted(
    gateway: Gateway, api: Api, namespace: str, log: io.StringIO
) -> None:
    async with running(gateway.kubeconfig, Health(), namespace, namespace):
        api.create(toy.finetune_job(namespace, "before"))
        await until("before is prepared", prepared(api, "before", namespace))
        gone, expired = status(410, "Expired"), Counter[str]()

        def expire(request: web.BaseRequest) -> Fault | None:
            if "watch" not in request.query or expired[request.path] > 0:
                return None
            expired[request.path] += 1
            return gone

        await until("watches are open", lambda: gateway.watch_count > 0)
        gateway.choose = expire
        gateway.drop()
        api.create(toy.finetune_job(namespace, "after"))
        took = await until("after is prepared", prepared(api, "after", namespace))
    assert expired
    assert "Traceback" not in log.getvalue()
    print(f"\n{len(expired)} watches cut off and expired: events again after {took:.1f} s")


def is_of_watcher(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith(("watcher for ", "pause-waiter for "))


async def test_watches_that_wait_for_a_response_end_with_the_engine(
    gateway: Gateway, api: Api, namespace: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf's stream takes a cancellation for the end of its watch where kopf's task that waits for
    a pause is cancelled with it; its watcher continues then, and the process never exits."""
    monkeypatch.setattr(watch, "ORPHAN_TIMEOUT", 0.1)
    async with running(gateway.kubeconfig, Health(), namespace, namespace):
        api.create(toy.finetune_job(namespace, "a"))
        await until("the job is prepared", prepared(api, "a", namespace))
        held = Counter[str]()

        def hold(request: web.BaseRequest) -> Fault | None:
            if "watch" not in request.query:
                return None
            held[request.path] += 1
            return Fault(delay=600)

        await until("watches are open", lambda: gateway.watch_count > 1)
        gateway.choose = hold
        gateway.drop()
        await until("watches are requested again", lambda: len(held) > 1)
        with monkeypatch.context() as watchers_only:  # kopf's other tasks close its connections
            watchers_only.setattr(watch, "_is_of_kopf", is_of_watcher)
            await watch.cancel_orphans()
        assert not [each for each in asyncio.all_tasks() if is_of_watcher(each)]
    assert "Traceback" not in log.getvalue()
    assert "Tasks of kopf do not end" not in log.getvalue()


async def test_a_namespace_that_cannot_be_listed_does_not_stop_the_others(
    gateway: Gateway,
    api: Api,
    namespace: str,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A namespace that was deleted, with the operator's Role in it, answers like this."""
    monkeypatch.setattr(controller, "DISCOVERY_PERIOD", 1.0)
    other = f"{namespace}-other"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})

    def refuse(request: web.BaseRequest) -> Fault | None:
        return status(403, "Forbidden") if f"/namespaces/{other}/" in request.path else None

    gateway.choose = refuse
    async with running(gateway.kubeconfig, Health(), namespace, f"{namespace},{other}"):
        for name in (namespace, other):
            api.create(toy.finetune_job(name, "first"))
        await until("the first namespace is served", prepared(api, "first", namespace))
        assert not prepared(api, "first", other)()

        gateway.choose = lambda _request: None
        await until("the other one is served", prepared(api, "first", other))

        await until("watches are open", lambda: gateway.watch_count > 0)
        gateway.choose = refuse
        gateway.drop()  # the watches end, and one is forbidden
        api.create(toy.finetune_job(namespace, "second"))
        await until("the first namespace is still served", prepared(api, "second", namespace))
    left_out = [each for each in log.getvalue().splitlines() if "is left out" in each]
    assert left_out
    assert all(f"namespace={other} " in each for each in left_out)
    assert "Traceback" not in log.getvalue()


async def test_jobs_are_carried_out_when_a_fifth_of_all_requests_fail(
    gateway: Gateway, api: Api, namespace: str, log: io.StringIO
) -> None:
    seed = random.randrange(10**6)
    chance, met = random.Random(seed), Counter[str]()

    def choose(request: web.BaseRequest) -> Fault | None:
        if "/leases" in request.path or chance.random() > 1 / 5:
            return None
        name = chance.choice([each for each in FAULTS if not each.startswith("an answer")])
        if "watch" in request.query and FAULTS[name].status is None:
            return None
        met[name] += 1
        return FAULTS[name]

    names = [f"job-{number}" for number in range(20)]
    async with running(gateway.kubeconfig, Health(), namespace, namespace):
        gateway.choose = choose
        for each in names:
            api.create(toy.finetune_job(namespace, each))

        def done() -> bool:
            jobs = api.list("FineTuneJob", namespace)
            return (
                all("phase" in each["status"] for each in jobs)
                and len(children(api, namespace)) == 40
            )

        started = time.monotonic()
        await until(f"all are prepared (seed {seed})", done, 120)
        took = time.monotonic() - started
    # kopf logs a traceback when a watch ends; none may come from our own code.
    assert "finetune_operator/" not in log.getvalue(), f"seed {seed}"
    assert children(api, namespace) == sorted(
        f"{kind} {each}-prepare-1" for kind in ("ConfigMap", "Job") for each in names
    )
    print(f"\n20 jobs, {sum(met.values())} faults, seed {seed}: all prepared after {took:.1f} s")


@pytest.mark.parametrize("ahead", [300, -300], ids=["5 minutes fast", "5 minutes slow"])
async def test_a_reconcile_function_gets_the_time_of_the_api_server(
    control_plane: ControlPlane, api: Api, namespace: str, ahead: int
) -> None:
    clock = ServerClock(wall=lambda: time.time() + ahead)
    offsets: list[timedelta] = []

    def reconcile(key: Key, view: View, now: datetime) -> Decision | None:
        job = view.get(key.kind, key.namespace, key.name)
        if job is not None:
            created = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
            offsets.append(now - created)
        return toy.reconcile(key, view, now)

    controllers = toy.make_controllers(reconcile)
    async with running(
        control_plane.kubeconfig, Health(), namespace, namespace, clock, controllers
    ):
        api.create(toy.finetune_job(namespace, "a"))
        await until("the job is prepared", prepared(api, "a", namespace))
    print(f"\na job that was just created is {offsets[0].total_seconds():.1f} s old")
    assert timedelta(seconds=-1.5) < offsets[0] < timedelta(seconds=10)
