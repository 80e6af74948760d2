"""Every kopf handler, all `on.event`: news goes to the intake, and nothing else happens here.

kopf is used for what it is good at, watching: it lists, watches, resumes, and replaces streams
that went silent. None of its state (annotations, finalizers, posted events, peering) is used.
Besides our kinds it watches our own Lease: the leader renews that every few seconds, so a watch
that does not echo it is dead, whatever else still works.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import kopf

from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.kinds import LEASE, Resource
from finetune_operator.engine.kube_client import KubeClient

Signal = Callable[[], None]
END_TIMEOUT = 10.0
"""Seconds for kopf to close its connections."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseWatch:
    """The canary: whose renewals of which Lease to look for, and whom to tell."""

    name: str
    namespace: str
    identity: str
    echoed: Signal


def registry_of(
    cluster: KubeClient,
    kinds: Collection[Resource],
    intake: EventHandlers,
    relisted: Signal,
    lease: LeaseWatch | None,
) -> kopf.OperatorRegistry:
    """The handlers for these kinds."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        known = await cluster.credentials()
        return kopf.ConnectionInfo(
            server=known.server,
            ca_path=known.ca_path,
            certificate_path=known.certificate_path,
            private_key_path=known.private_key_path,
            token=known.token,
            scheme="Bearer" if known.token else None,
            insecure=known.insecure,
        )

    async def news(event: Any, **_: Any) -> None:
        manifest = dict(event["object"], metadata=dict(event["object"]["metadata"]))
        if event["type"] == "DELETED":
            intake.removed(manifest)
        else:
            intake.changed(manifest)
        if event["type"] is None:  # kopf listed anew and cannot say what has gone meanwhile
            relisted()

    for each in kinds:
        kopf.on.event(each.group, each.version, each.plural, registry=registry, id=each.plural)(
            news
        )

    if lease is not None:
        canary = lease

        @kopf.on.event(LEASE.group, LEASE.version, LEASE.plural, registry=registry, id="canary")
        async def renewed(event: Any, namespace: str | None, spec: Any, **_: Any) -> None:
            if event["type"] is None:  # even where there is no other object to list
                relisted()
            if namespace == canary.namespace and spec.get("holderIdentity") == canary.identity:
                canary.echoed()

    return registry


def settings_of(kinds: Collection[Resource], lease: LeaseWatch | None) -> kopf.OperatorSettings:
    """kopf as a watcher: it may not write, and it looks for no kinds or namespaces by itself."""
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
    if lease is not None:
        key = (LEASE.group, LEASE.version, LEASE.plural)
        settings.watching.field_selectors[key] = f"metadata.name={lease.name}"
    return settings


async def watch(
    cluster: KubeClient,
    kinds: Collection[Resource],
    namespaces: Sequence[str],
    intake: EventHandlers,
    relisted: Signal,
    started: Signal,
    lease: LeaseWatch | None = None,
) -> None:
    """Watch until cancelled; raises what ended a watch for good.

    `started` is called once kopf runs; since kopf takes over SIGTERM and SIGINT in that moment,
    it must take them back.
    """
    asyncio.get_running_loop().set_exception_handler(tell_of_lost_task)
    registry = registry_of(cluster, kinds, intake, relisted, lease)
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings_of(kinds, lease),
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
        standalone=True,
    )
    started()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise RuntimeError("kopf stopped to watch without saying why")
    finally:
        await _end(tasks)


def tell_of_lost_task(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Where several of kopf's watches fail at once it looks at one of them; of the others asyncio
    would print a traceback, at any later time."""
    task = context.get("future")
    if isinstance(task, asyncio.Task) and task.get_name().startswith("watcher for "):
        log.info("the %s ended too: %r", task.get_name(), context.get("exception"))
    else:
        loop.default_exception_handler(context)


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel kopf's tasks: those left over after some seconds wait for others, so once more."""
    for _ in range(2):
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=END_TIMEOUT)
