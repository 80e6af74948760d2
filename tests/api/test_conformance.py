"""kube-apiserver behaves like the simulation's API server in memory."""

from __future__ import annotations

import pytest
from finetune_operator.engine.kube_client import KubeClient

from hack.cluster.apiserver import ControlPlane
from tests.sim.conformance import CASES


@pytest.mark.parametrize("name", CASES)
async def test_kube_apiserver(name: str, control_plane: ControlPlane, namespace: str) -> None:
    cluster = await KubeClient.connect(str(control_plane.kubeconfig))
    seen, expected = CASES[name]
    try:
        assert await seen(cluster, namespace) == expected
    finally:
        await cluster.close()
