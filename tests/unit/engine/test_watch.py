"""Tasks of kopf: failures that kopf does not await, and tasks that it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from finetune_operator.engine.watch import KOPF_FOLDER, cancel_orphans, log_lost_task

FAILS = """
async def fails():
    raise ConnectionError("gone")
"""


@pytest.mark.parametrize(
    ("folder", "name", "traceback"),
    [
        (KOPF_FOLDER, "watcher for jobs.v1.batch@team-a", False),
        (KOPF_FOLDER / "_cogs" / "clients", "Task-5558", False),
        (KOPF_FOLDER.parent, "a task of another library", True),
    ],
)
def test_a_task_of_kopf_that_fails_after_another_is_logged_in_one_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture, folder: Path, name: str, traceback: bool
) -> None:
    scope: dict[str, Any] = {}
    exec(compile(FAILS, str(folder / "scanning.py"), "exec"), scope)

    async def lose() -> None:
        asyncio.get_running_loop().set_exception_handler(log_lost_task)
        task = asyncio.create_task(scope["fails"](), name=name)
        await asyncio.wait([task])

    caplog.set_level(logging.INFO)
    asyncio.run(lose())
    gc.collect()
    (record,) = (
        each for each in caplog.records if name in getattr(each, "task", each.getMessage())
    )
    assert bool(record.exc_info) == traceback


SWALLOWS_CANCELLATIONS = """
import asyncio

async def watch(times):
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
    await asyncio.Event().wait()
"""


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_task_of_kopf_that_swallows_cancellations_is_cancelled_again(times: int) -> None:
    scope: dict[str, Any] = {}
    exec(compile(SWALLOWS_CANCELLATIONS, str(KOPF_FOLDER / "stream.py"), "exec"), scope)
    orphan = asyncio.create_task(scope["watch"](times))
    ours = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel_orphans()
    assert orphan.cancelled()
    assert not ours.done(), "tasks of the engine are left alone"
    ours.cancel()
