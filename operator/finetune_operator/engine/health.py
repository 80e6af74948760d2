"""Liveness, readiness and /metrics of this process, for the kubelet and Prometheus.

A leader whose watch has died still answers requests, but does nothing. So the leader watches the
Lease that it renews every few seconds (`watch.LeaseWatch`); when the watch has delivered no renewal
for a minute, /healthz fails and the kubelet restarts the process. A standby is alive while it
answers.
"""

import time
from collections.abc import Callable

from aiohttp import web

from finetune_operator.engine.metrics import Metrics

MAX_ECHO_AGE = 60.0


class Health:
    """What this process has reached: leadership, a live watch, a complete cache."""

    def __init__(
        self, max_echo_age: float = MAX_ECHO_AGE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_echo_age = max_echo_age
        self._clock = clock
        self._last_echo: float | None = None
        self._is_leader = False
        self._has_synced = False
        self._unready_reason: str | None = None

    def set_unready_reason(self, reason: str | None) -> None:
        """This process cannot take over, for this reason; None once it can."""
        self._unready_reason = reason

    def set_leading(self) -> None:
        """This process leads from now on; its cache is not complete yet."""
        self._is_leader = True

    def expect_echoes(self) -> None:
        """From now on the watch must deliver the renewals of our Lease."""
        self._last_echo = self._clock()

    def record_echo(self) -> float:
        """The watch delivered a renewal of our Lease; seconds since the one before."""
        age = self.echo_age()
        self._last_echo = self._clock()
        return age

    def set_synced(self) -> None:
        """The cache is complete and the workers run."""
        self._has_synced = True

    def echo_age(self) -> float:
        """Seconds since the watch last delivered a renewal of our Lease; 0 for a standby."""
        return 0.0 if self._last_echo is None else self._clock() - self._last_echo

    def liveness_problem(self) -> str | None:
        """Why the kubelet should restart the process; None if it should not."""
        age = self.echo_age()
        if age > self._max_echo_age:
            return f"the watch is dead: it has delivered no renewal of the lease for {age:.0f} s"
        return None

    def readiness_problem(self) -> str | None:
        """Why the process is not ready; None if it is. A standby is ready to take over."""
        if self._unready_reason is not None:
            return self._unready_reason
        if self._is_leader and not self._has_synced:
            return "the first lists are not complete"
        return self.liveness_problem()


async def serve_health(health: Health, metrics: Metrics, port: int) -> web.AppRunner:
    """Answer /healthz, /readyz and /metrics until the runner is cleaned up."""

    def respond(problem: str | None) -> web.Response:
        return web.Response(text=(problem or "ok") + "\n", status=503 if problem else 200)

    async def healthz(_: web.Request) -> web.Response:
        return respond(health.liveness_problem())

    async def readyz(_: web.Request) -> web.Response:
        return respond(health.readiness_problem())

    async def export_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", export_metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
