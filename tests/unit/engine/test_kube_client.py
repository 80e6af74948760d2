"""kopf gets the same credentials as our own client, from any source."""

import pytest
from finetune_operator.engine.kube_client import KubeClient
from kubernetes.aio import client


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_the_token_is_passed_on_without_its_scheme(scheme: str) -> None:
    configuration = client.Configuration(host="https://127.0.0.1:1")
    configuration.api_key["BearerToken"] = f"{scheme} some.long.token"
    kube_client = KubeClient(configuration)
    try:
        assert (await kube_client.credentials()).token == "some.long.token"
    finally:
        await kube_client.close()


async def test_client_certificates_need_no_token() -> None:
    kube_client = KubeClient(client.Configuration(host="https://127.0.0.1:1"))
    try:
        assert (await kube_client.credentials()).token is None
    finally:
        await kube_client.close()
