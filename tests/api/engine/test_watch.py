"""The whole engine in this process, while its API server restarts or its watches go silent."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune_operator.engine.health import Health

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.proxy import Proxy
from tests.api.engine.whole import prepared, running, until


class CountingHealth(Health):
    """Counts echoes. Their age alone does not show one: it begins before the watch does."""

    echoes = 0

    def record_echo(self) -> float:
        self.echoes += 1
        return super().record_echo()

    def echoed_now(self) -> bool:
        """Whether there was an echo in the last second."""
        return self.echoes > 0 and self.echo_age() < 1


async def test_watches_recover_after_the_api_server_was_restarted(
    own_plane: ControlPlane,
    own_api: Api,
    thread: ThreadPoolExecutor,
    log: io.StringIO,
) -> None:
    health = CountingHealth()
    async with running(own_plane.kubeconfig, health, "restarted") as engine:
        own_api.create(toy.finetune_job("default", "before"))
        own_api.create(toy.finetune_job("default", "leaves"))
        await until("before is prepared", prepared(own_api, "before"))
        await until("leaves is prepared", prepared(own_api, "leaves"))
        await until("the watch echoes", health.echoed_now)

        await asyncio.get_running_loop().run_in_executor(thread, own_plane.restart_apiserver)
        own_api.delete("FineTuneJob", "default", "leaves")
        own_api.create(toy.finetune_job("default", "after"))

        took = await until("after is prepared", prepared(own_api, "after"))
        await until(
            "the cache has seen the deletion",
            lambda: engine.cache.get("FineTuneJob", "default", "leaves") is None,
        )
        lines = log.getvalue().splitlines()
        assert [each for each in lines if each.split()[1] not in ("INFO", "WARNING")] == []
        print(f"\nwatches work again {took:.1f} s after the API server did, {len(lines)} lines")


async def test_a_silent_watch_is_detected_although_everything_else_works(
    own_plane: ControlPlane, own_api: Api, tmp_path: Path
) -> None:
    health = CountingHealth(max_echo_age=4)
    port = int(own_plane.url.rpartition(":")[2])
    async with Proxy(port) as proxy:
        kubeconfig = tmp_path / "kubeconfig"
        text = own_plane.kubeconfig.read_text()
        kubeconfig.write_text(text.replace(own_plane.url, f"https://127.0.0.1:{proxy.port}"))
        async with running(kubeconfig, health, "silent") as engine:
            own_api.create(toy.finetune_job("default", "first"))
            await until("first is prepared", prepared(own_api, "first"))
            await until("the watch echoes", health.echoed_now)
            assert health.liveness_problem() is None

            assert proxy.silence() > 0
            lease = own_api.get("Lease", "default", "silent")
            took = await until("the liveness check fails", lambda: bool(health.liveness_problem()))

            assert "the watch is dead" in (health.liveness_problem() or "")
            print(f"\na silent watch was detected {took:.1f} s after it went silent, limit 4 s")
            await until(
                "the lease is renewed nevertheless", lambda: is_renewed_since(own_api, lease)
            )
            assert engine.cache.get("FineTuneJob", "default", "first")


def is_renewed_since(api: Api, lease: dict[str, dict[str, str]]) -> bool:
    now = api.get("Lease", "default", "silent")
    return bool(now["spec"]["renewTime"] > lease["spec"]["renewTime"])
