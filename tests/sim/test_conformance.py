"""The in-memory API server behaves as kube-apiserver does."""

from __future__ import annotations

import pytest

from tests.sim.clock import Clock
from tests.sim.conformance import CASES
from tests.sim.machine import frozen_spec
from tests.sim.port import Port
from tests.sim.server import ApiServer


@pytest.mark.parametrize("name", CASES)
async def test_the_server_in_memory(name: str) -> None:
    clock = Clock()
    server = ApiServer(clock)
    server.admission["FineTuneJob"] = frozen_spec
    seen, expected = CASES[name]
    assert await seen(Port(server, clock, lambda _: None), "default") == expected
