"""Watches: every kopf handler, all `on.event`; each event goes to `event_handlers`, nothing more.

The engine uses kopf for what it does well, watching: kopf lists, watches, resumes, and replaces
streams that went silent. None of its state (annotations, finalizers, posted events, peering) is
used. Besides our kinds kopf watches our own Lease: the leader renews it every few seconds, so a
watch that does not deliver the renewals is dead, even if everything else still works.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf

from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.kinds import LEASE, Resource
from finetune_operator.engine.kube_client import KubeClient

Callback = Callable[[], None]
END_TIMEOUT = 10.0
"""Seconds for kopf to close its connections."""
ORPHAN_ROUNDS, ORPHAN_TIMEOUT = 10, 1.0
"""How often, and for how many seconds each time, to cancel a task that does not end."""
PAUSE_WAITER = "pause-waiter for "
"""How kopf begins the name of a watcher's task that waits for a pause."""
KOPF_FOLDER = Path(kopf.__file__).parent
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseWatch:
    """Which Lease to watch, whose renewals count, and what to call for each of them."""

    name: str
    namespace: str
    identity: str
    on_echo: Callback


def build_registry(
    client: KubeClient,
    kinds: Collection[Resource],
    event_handlers: EventHandlers,
    on_relist: Callback,
    lease: LeaseWatch,
) -> kopf.OperatorRegistry:
    """kopf's handlers for these kinds."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        credentials = await client.credentials()
        return kopf.ConnectionInfo(
            server=credentials.server,
            ca_path=credentials.ca_path,
            certificate_path=credentials.certificate_path,
            private_key_path=credentials.private_key_path,
            token=credentials.token,
            scheme="Bearer" if credentials.token else None,
            insecure=credentials.insecure,
        )

    async def handle_event(event: Any, **_: Any) -> None:
        manifest = dict(event["object"], metadata=dict(event["object"]["metadata"]))
        if event["type"] == "DELETED":
            event_handlers.on_delete(manifest)
        else:
            event_handlers.on_update(manifest)
        if event["type"] is None:  # kopf listed again and does not report what was deleted before
            on_relist()

    for each in kinds:
        kopf.on.event(each.group, each.version, each.plural, registry=registry, id=each.plural)(
            handle_event
        )

    @kopf.on.event(LEASE.group, LEASE.version, LEASE.plural, registry=registry, id="canary")
    async def handle_lease(event: Any, namespace: str | None, spec: Any, **_: Any) -> None:
        if event["type"] is None:  # also where there is no other object to list
            on_relist()
        if namespace == lease.namespace and spec.get("holderIdentity") == lease.identity:
            lease.on_echo()

    return registry


def build_settings(kinds: Collection[Resource], lease: LeaseWatch) -> kopf.OperatorSettings:
    """kopf as a watcher: it writes nothing, and does not scan for kinds or namespaces."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 4)
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = 500
    for each in kinds:
        if each.selector:
            key = (each.group, each.version, each.plural)
            settings.watching.label_selectors[key] = each.selector
    key = (LEASE.group, LEASE.version, LEASE.plural)
    settings.watching.field_selectors[key] = f"metadata.name={lease.name}"
    return settings


async def run_watches(
    client: KubeClient,
    kinds: Collection[Resource],
    namespaces: Sequence[str],
    event_handlers: EventHandlers,
    on_relist: Callback,
    on_start: Callback,
    lease: LeaseWatch,
) -> None:
    """Watch until cancelled; raises the error that ended a watch for good.

    Calls `on_start` once kopf runs: kopf has replaced the handlers of SIGTERM and SIGINT by then,
    so the callback must install its own again.
    """
    asyncio.get_running_loop().set_exception_handler(log_lost_task)
    registry = build_registry(client, kinds, event_handlers, on_relist, lease)
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=build_settings(kinds, lease),
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
        standalone=True,
    )
    on_start()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise RuntimeError("kopf stopped watching without an error")
    finally:
        await _cancel_tasks(tasks)


def log_lost_task(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler of asyncio. Where several of kopf's watchers, or several requests of its
    discovery, fail at once, kopf awaits one of them; for each of the others asyncio would print a
    traceback at some later time."""
    task = context.get("future")
    if isinstance(task, asyncio.Task) and _is_of_kopf(task):
        extra = {
            "task": task.get_name(),
            "function": getattr(task.get_coro(), "__name__", ""),
            "error": repr(context.get("exception")),
        }
        log.info("Another task of kopf failed too", extra=extra)
    else:
        loop.default_exception_handler(context)


async def _cancel_tasks(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel kopf's tasks, twice: those that still run after some seconds wait for others."""
    for _ in range(2):
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=END_TIMEOUT)
    await cancel_orphans()


async def cancel_orphans() -> None:
    """Cancel the tasks that kopf's tasks leave behind, until they have ended.

    Each watcher owns a task that waits for a pause, and ends it. Where that task is cancelled with
    its watcher, a stream that waits for a response takes the cancellation for the end of its watch,
    and the watcher continues: it would keep the process from exiting. So the pause-waiters come
    last, when no task is left that could own them.
    """
    for number in range(ORPHAN_ROUNDS):
        orphans = [task for task in asyncio.all_tasks() if _is_of_kopf(task)]
        if not orphans:
            return
        owners = [task for task in orphans if not task.get_name().startswith(PAUSE_WAITER)]
        if number > 0:  # most end by themselves, in order
            for task in owners or orphans:
                task.cancel()
        await asyncio.wait(owners or orphans, timeout=ORPHAN_TIMEOUT)
    log.warning("Tasks of kopf do not end", extra={"tasks": [task.get_name() for task in orphans]})


def _is_of_kopf(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and KOPF_FOLDER in Path(code.co_filename).parents
