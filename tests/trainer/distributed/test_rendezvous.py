"""Where ranks meet, and how long one waits until all have started."""

from __future__ import annotations

import subprocess
import sys

import pytest
from finetune_api.protocol import RENDEZVOUS_TIMEOUT_ENV
from finetune_trainer.distributed import launcher
from finetune_trainer.runtime.errors import RetryableError

from tests.trainer.jobs import environment, free_port


@pytest.mark.timeout(60)
def test_the_operator_sets_how_long_a_rank_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable it would be ten minutes."""
    port = str(free_port())
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**settings, RENDEZVOUS_TIMEOUT_ENV: "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RetryableError) as caught:
        launcher.join_store()
    assert caught.value.failure.reason == "RendezvousFailed"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ranks_meet_on_addresses_of_both_families(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The name of the first pod resolves to an IPv6 address where pods have no other."""
    port = str(free_port())
    settings = {"MASTER_ADDR": host, "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in {**settings, RENDEZVOUS_TIMEOUT_ENV: "120"}.items():
        monkeypatch.setenv(name, value)
    module = "finetune_trainer.distributed.launcher"
    with subprocess.Popen([sys.executable, "-m", module, port], env=environment()) as server:
        try:
            store = launcher.join_store()
            store.set("name", "value")
            assert store.get("name") == b"value"
        finally:
            server.kill()
