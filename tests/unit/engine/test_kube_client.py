"""kopf is given the same credentials as our own client, wherever they come from."""

import pytest
from finetune_operator.engine.kube_client import KubeClient
from kubernetes.aio import client


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_token_is_handed_on_without_its_scheme(scheme: str) -> None:
    configuration = client.Configuration(host="https://127.0.0.1:1")
    configuration.api_key["BearerToken"] = f"{scheme} some.long.token"
    cluster = KubeClient(configuration)
    try:
        assert (await cluster.credentials()).token == "some.long.token"
    finally:
        await cluster.close()


async def test_client_certificates_need_no_token() -> None:
    cluster = KubeClient(client.Configuration(host="https://127.0.0.1:1"))
    try:
        assert (await cluster.credentials()).token is None
    finally:
        await cluster.close()
