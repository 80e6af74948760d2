"""Failures of kopf's watcher tasks that kopf does not await."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from finetune_operator.engine.watch import log_lost_watcher


@pytest.mark.parametrize(
    ("name", "traceback"),
    [("watcher for jobs.v1.batch@team-a", False), ("a task of another library", True)],
)
def test_a_watcher_that_fails_after_another_is_logged_in_one_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture, name: str, traceback: bool
) -> None:
    async def fails() -> None:
        raise ConnectionError("gone")

    async def lose() -> None:
        asyncio.get_running_loop().set_exception_handler(log_lost_watcher)
        task = asyncio.create_task(fails(), name=name)
        await asyncio.wait([task])

    caplog.set_level(logging.INFO)
    asyncio.run(lose())
    gc.collect()
    (record,) = (
        each for each in caplog.records if name in getattr(each, "watcher", each.getMessage())
    )
    assert bool(record.exc_info) == traceback
