"""What the operator reads at the API server apart from its watches."""

from __future__ import annotations

from finetune_operator.decision import Manifest

from tests.api.client import Api
from tests.api.engine.conftest import Bench


async def test_the_events_about_one_object_with_a_reason_are_listed(
    bench: Bench, api: Api, namespace: str
) -> None:
    for name, uid, reason in [
        ("wanted", "1", "FailedCreate"),
        ("another-reason", "1", "Completed"),
        ("another-object", "2", "FailedCreate"),
    ]:
        api.create(event(namespace, name, uid, reason))
    found = await bench.client.list_events(namespace, "1", "FailedCreate")
    assert [each["metadata"]["name"] for each in found] == ["wanted"]
    assert found[0]["message"] == "as wanted"


def event(namespace: str, name: str, uid: str, reason: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": "Job", "namespace": namespace, "name": "a", "uid": uid},
        "reason": reason,
        "message": f"as {name}",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
