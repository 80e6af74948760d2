"""The process: options, signals, leadership, exit status.

A standby answers /healthz and waits for the Lease; the leader runs the engine. SIGTERM lets the
running reconciles end, gives the Lease back and exits with 0. A lost Lease ends the process at
once, in the middle of whatever it does: another leader may be at work already.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from finetune_operator import settings
from finetune_operator.decision import Settings
from finetune_operator.engine import health as health_of
from finetune_operator.engine import logs
from finetune_operator.engine.controller import Controller, unless
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import KubeClient, NoConnection
from finetune_operator.engine.leader_election import LeaderElection, LeadershipLost
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Controllers

EXIT_FAILED = 1
EXIT_LEADERSHIP_LOST = 3

log = logging.getLogger(__name__)


def run(argv: Sequence[str], product_of: Callable[[Settings], Controllers]) -> int:
    """Run the operator with these arguments until it is told to stop; the exit status."""
    options = settings.parse(argv)
    logs.configure(options.log_format, options.log_level)
    try:
        return asyncio.run(_serve(options, product_of(options.settings)))
    except (NoConnection, OSError) as error:  # OSError: the health port is in use
        print(f"finetune-operator: error: {error}", file=sys.stderr)
        return EXIT_FAILED


async def _serve(options: settings.Options, product: Controllers) -> int:
    stop = asyncio.Event()
    take_signals = _signals(stop)
    take_signals()
    metrics, health = Metrics(), Health()
    cluster = await KubeClient.connect(options.kubeconfig)
    try:
        web = await health_of.serve(health, metrics, options.health_port)
        try:
            election = LeaderElection(
                cluster, options.lease_namespace, options.lease_name, options.identity
            )
            if await unless(stop, election.acquire()) is None:
                return 0
            engine = Controller(cluster, options, product, metrics, health, election)
            metrics.leader.set(1)
            return await _lead(engine, election, stop, take_signals)
        finally:
            await web.cleanup()
    finally:
        await cluster.close()


async def _lead(
    engine: Controller,
    election: LeaderElection,
    stop: asyncio.Event,
    take_signals: Callable[[], None],
) -> int:
    hold = asyncio.create_task(election.hold(), name="hold the lease")
    hold.add_done_callback(_lost)
    try:
        await engine.run(stop, take_signals)
        log.info("stopped")
        return 0
    except Exception:
        log.exception("the engine failed")
        return EXIT_FAILED
    finally:
        hold.remove_done_callback(_lost)
        hold.cancel()
        await asyncio.wait({hold})
        await election.release()


def _lost(hold: asyncio.Task[None]) -> None:
    if hold.cancelled():
        return
    if isinstance(error := hold.exception(), LeadershipLost):
        log.critical("leadership lost, exiting at once: %s", error)
    else:
        log.critical("the election failed, exiting at once", exc_info=error)
    logging.shutdown()
    os._exit(EXIT_LEADERSHIP_LOST)  # no clean-up: nothing may be written any more


def _signals(stop: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def take() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    return take
