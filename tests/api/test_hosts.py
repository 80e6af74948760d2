"""The API server refuses the same hosts as the models, before anything is stored."""

from __future__ import annotations

from typing import Any

from tests.api.client import Api, ApiError
from tests.api.test_cel import job, rows
from tests.unit.api.test_hosts import LOOPBACK, METADATA, NOWHERE, OTHER_SPELLINGS, SERVERS


def refusal(api: Api, namespace: str, **changes: Any) -> str:
    """What the API server answers; empty where it admits the job."""
    wish = job(namespace, **changes)
    try:
        api.create(wish)
    except ApiError as error:
        return error.message
    api.delete("FineTuneJob", namespace, wish["metadata"]["name"])
    return ""


def test_the_api_server_refuses_the_hosts_that_the_model_refuses(api: Api, namespace: str) -> None:
    for host in METADATA + OTHER_SPELLINGS + NOWHERE + LOOPBACK:
        message = refusal(api, namespace, **rows(f"https://{host}/rows.jsonl"))
        assert "spec.dataset.train[0].uri" in message, host
        assert "must not name a metadata service, the pod itself" in message, host


def test_the_api_server_refuses_trackers_that_are_metadata_services(
    api: Api, namespace: str
) -> None:
    for host in METADATA + OTHER_SPELLINGS + NOWHERE:
        mlflow = {"mlflow": {"experiment": "e", "trackingUri": f"http://{host}"}}
        message = refusal(api, namespace, tracking=mlflow)
        assert "spec.tracking.mlflow.trackingUri" in message, host
        assert "must not name a metadata service, or" in message, host


def test_the_api_server_admits_other_servers(api: Api, namespace: str) -> None:
    for host in SERVERS:
        assert refusal(api, namespace, **rows(f"https://{host}/rows.jsonl")) == "", host


def test_the_api_server_stores_no_password_of_an_address(api: Api, namespace: str) -> None:
    secret = "https://user:hunter2@example.org/model.tar.gz"
    mlflow = {"mlflow": {"experiment": "e", "trackingUri": secret}}
    for changes in ({"model": {"uri": secret}}, rows(secret), {"tracking": mlflow}):
        message = refusal(api, namespace, **changes)
        assert "put them into the Secret that credentialsSecretRef names" in message
