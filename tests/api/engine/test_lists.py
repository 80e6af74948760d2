"""What the operator lists: of some kinds only the objects, or the parts of them, that it reads."""

from __future__ import annotations

from finetune_operator.decision import Manifest
from finetune_operator.engine.kinds import resource

from tests.api.client import Api
from tests.api.engine.conftest import Bench


async def test_of_events_those_are_listed_that_report_refused_pods(
    bench: Bench, api: Api, namespace: str
) -> None:
    for kind, reason in [("Job", "FailedCreate"), ("Job", "Completed"), ("Pod", "FailedCreate")]:
        api.create(event(namespace, kind, reason))
    found, version = await bench.client.list(resource("Event"), namespace)
    assert [each["metadata"]["name"] for each in found] == ["job.failedcreate"]
    assert found[0]["message"] == "Job FailedCreate"
    assert int(version)


async def test_of_nodes_the_metadata_is_listed(bench: Bench, api: Api, namespace: str) -> None:
    name, labels = f"node-of-{namespace}", {"kubernetes.io/hostname": "ip-10-0-0-7"}
    metadata = {"name": name, "labels": labels}
    spec = {"podCIDR": "10.244.7.0/24", "unschedulable": True}
    api.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})
    await bench.list("Node")
    node = bench.cache.get("Node", "", name)
    api.delete("Node", "", name)
    assert node is not None
    assert (node["apiVersion"], node["kind"]) == ("v1", "Node")
    assert labels.items() <= node["metadata"]["labels"].items()
    assert node.keys() == {"apiVersion", "kind", "metadata"}


def event(namespace: str, kind: str, reason: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{kind}.{reason}".lower(), "namespace": namespace},
        "involvedObject": {"kind": kind, "namespace": namespace, "name": "a"},
        "reason": reason,
        "message": f"{kind} {reason}",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
