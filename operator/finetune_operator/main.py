"""The process: options, signals, leadership, exit status.

A process first waits for CRDs that fit (`engine.crd_check`). A standby answers /healthz and waits
for the Lease; the leader runs `engine.controller`. On SIGTERM the running reconciles end, then the
process releases the Lease and exits with 0. A process that lost the Lease exits at once, in the
middle of its work: another leader may be working already.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from finetune_operator import settings
from finetune_operator.decision import ControllerTable, Settings
from finetune_operator.engine import logs
from finetune_operator.engine.controller import Controller, run_unless_stopped
from finetune_operator.engine.crd_check import wait_for_crds
from finetune_operator.engine.health import Health, serve_health
from finetune_operator.engine.kube_client import KubeClient, NoConnection
from finetune_operator.engine.leader_election import LeaderElection, LeadershipLost
from finetune_operator.engine.metrics import Metrics

EXIT_FAILED = 1
EXIT_LEADERSHIP_LOST = 3

log = logging.getLogger(__name__)


def run(argv: Sequence[str], build_controllers: Callable[[Settings], ControllerTable]) -> int:
    """Run the operator with these arguments until a signal stops it; the exit status."""
    options = settings.parse(argv)
    logs.configure(options.log_format, options.log_level)
    try:
        return asyncio.run(_run_replica(options, build_controllers(options.settings)))
    except (NoConnection, OSError) as error:  # OSError: the health port is in use
        print(f"finetune-operator: error: {error}", file=sys.stderr)
        return EXIT_FAILED


async def _run_replica(options: settings.Options, controllers: ControllerTable) -> int:
    """Serve health and metrics, wait for the CRDs and the Lease, and lead."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def install_signal_handlers() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    install_signal_handlers()
    metrics, health = Metrics(), Health()
    client = await KubeClient.connect(options.kubeconfig)
    try:
        web = await serve_health(health, metrics, options.health_port)
        try:
            namespace = settings.own_namespace(os.environ)
            if await run_unless_stopped(stop, wait_for_crds(client, health, namespace)) is None:
                return 0
            leader_election = LeaderElection(
                client, options.lease_namespace, options.lease_name, options.identity
            )
            if await run_unless_stopped(stop, leader_election.acquire()) is None:
                return 0
            controller = Controller(client, options, controllers, metrics, health, leader_election)
            metrics.leader.set(1)
            return await _lead(controller, leader_election, stop, install_signal_handlers)
        finally:
            await web.cleanup()
    finally:
        await client.close()


async def _lead(
    controller: Controller,
    leader_election: LeaderElection,
    stop: asyncio.Event,
    install_signal_handlers: Callable[[], None],
) -> int:
    renewal = asyncio.create_task(leader_election.renew(), name="renew the lease")
    renewal.add_done_callback(_exit_without_lease)
    try:
        await controller.run(stop, install_signal_handlers)
        log.info("Stopped")
        return 0
    except Exception:
        log.exception("The controller failed")
        return EXIT_FAILED
    finally:
        renewal.remove_done_callback(_exit_without_lease)
        renewal.cancel()
        await asyncio.wait({renewal})
        await leader_election.release()


def _exit_without_lease(renewal: asyncio.Task[None]) -> None:
    if renewal.cancelled():
        return
    if isinstance(error := renewal.exception(), LeadershipLost):
        log.critical("Leadership lost, exiting at once", extra={"error": str(error)})
    else:
        log.critical("Leader election failed, exiting at once", exc_info=error)
    logging.shutdown()
    os._exit(EXIT_LEADERSHIP_LOST)  # no clean-up: this process must not write any more
