"""What is told of tasks whose end nobody looked at."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from finetune_operator.engine.watch import tell_of_lost_task


@pytest.mark.parametrize(
    ("name", "traceback"),
    [("watcher for jobs.v1.batch@team-a", False), ("somebody else's", True)],
)
def test_a_watch_that_failed_beside_another_costs_one_line_and_no_traceback(
    caplog: pytest.LogCaptureFixture, name: str, traceback: bool
) -> None:
    async def fails() -> None:
        raise ConnectionError("gone")

    async def lose() -> None:
        asyncio.get_running_loop().set_exception_handler(tell_of_lost_task)
        task = asyncio.create_task(fails(), name=name)
        await asyncio.wait([task])

    caplog.set_level(logging.INFO)
    asyncio.run(lose())
    gc.collect()
    (record,) = (each for each in caplog.records if name in each.getMessage())
    assert bool(record.exc_info) == traceback
