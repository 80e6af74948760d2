"""How long a rank waits until all ranks have started."""

from __future__ import annotations

import pytest
from finetune_api.protocol import RENDEZVOUS_TIMEOUT_ENV
from finetune_trainer.distributed import launcher
from finetune_trainer.runtime.errors import RetryableError

from tests.trainer.jobs import free_port


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
