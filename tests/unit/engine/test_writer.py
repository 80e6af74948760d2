"""Writes are counted by their result."""

from __future__ import annotations

from typing import NoReturn

import pytest
from finetune_operator.controllers import keys_of
from finetune_operator.decision import ControllerTable
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.kube_client import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    KubeClient,
    NoConnection,
    NotFound,
    Unavailable,
)
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.engine.writer import NameTaken, NotLeading, Writer
from kubernetes.aio import client


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ApiError, "ClusterError"),
        (NotFound, "NotFound"),
        (Conflict, "Conflict"),
        (AlreadyExists, "AlreadyExists"),
        (Forbidden, "Forbidden"),
        (Invalid, "Invalid"),
        (Unavailable, "Unavailable"),
        (NoConnection, "NoConnection"),
        (NotLeading, "NotLeading"),
        (NameTaken, "NameTaken"),
    ],
)
async def test_a_failed_write_is_counted_by_the_kind_of_its_error(
    error: type[ApiError], result: str
) -> None:
    """Dashboards and alerts select by these values, so they stay when a class is renamed."""

    async def fail() -> NoReturn:
        raise error("no")

    async def confirm() -> bool:
        return True

    kube_client = KubeClient(client.Configuration(host="https://127.0.0.1:1"))
    metrics, cache = Metrics(), Cache()
    event_handlers = EventHandlers(
        cache, WorkQueue(metrics.queue), ControllerTable({}, {}, keys_of), metrics.handovers
    )
    writer = Writer(kube_client, cache, event_handlers, metrics, lambda: True, confirm)
    try:
        with pytest.raises(error):
            await writer.send("create", "Job", fail())
    finally:
        await kube_client.close()
    labels = {"verb": "create", "kind": "Job", "result": result}
    assert metrics.registry.get_sample_value("finetune_api_writes_total", labels) == 1
