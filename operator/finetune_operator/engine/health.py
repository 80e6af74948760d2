"""Whether this process is any use, for kubelet and Prometheus.

Alive means more than answering: a leader whose watch has died answers well and does nothing. The
leader renews its Lease every few seconds and watches it; when no renewal came back through the
watch for a minute, the process should be restarted. A standby is alive while it answers.
"""

import time
from collections.abc import Callable

from aiohttp import web

from finetune_operator.engine.metrics import Metrics

MAX_ECHO_AGE = 60.0


class Health:
    """What is known about this process's own state."""

    def __init__(
        self, max_echo_age: float = MAX_ECHO_AGE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_echo_age = max_echo_age
        self._clock = clock
        self._echo: float | None = None
        self._leading = False
        self._synced = False

    def leading(self) -> None:
        """This process leads now, and has yet to fill its cache."""
        self._leading = True

    def watching(self) -> None:
        """From now on the watch must echo."""
        self._echo = self._clock()

    def echoed(self) -> float:
        """The watch showed a renewal of our Lease; seconds since the one before."""
        age = self.echo_age()
        self._echo = self._clock()
        return age

    def synced(self) -> None:
        """The cache is complete and keys are worked on."""
        self._synced = True

    def echo_age(self) -> float:
        """Seconds since the last sign of life of the watch; 0 for a standby."""
        return 0.0 if self._echo is None else self._clock() - self._echo

    def sick(self) -> str | None:
        """Why the process should be restarted, if so."""
        age = self.echo_age()
        if age > self._max_echo_age:
            return f"the watch is dead: no renewal of the lease came back for {age:.0f} s"
        return None

    def unready(self) -> str | None:
        """Why the process is not ready, if so. A standby is: it is ready to take over."""
        if self._leading and not self._synced:
            return "the first lists are not complete"
        return self.sick()


async def serve(health: Health, metrics: Metrics, port: int) -> web.AppRunner:
    """Answer /healthz, /readyz and /metrics until the runner is cleaned up."""

    def verdict(problem: str | None) -> web.Response:
        return web.Response(text=(problem or "ok") + "\n", status=503 if problem else 200)

    async def healthz(_: web.Request) -> web.Response:
        return verdict(health.sick())

    async def readyz(_: web.Request) -> web.Response:
        return verdict(health.unready())

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", show_metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
