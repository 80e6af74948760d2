"""A real API server accepts the children of a FineTuneJob in a restricted namespace."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from finetune_api.protocol import StageName
from finetune_operator.names import child_name

from tests.api.client import Api, Manifest
from tests.unit.jobs.world import JOB_UID, NAMESPACE, World

LONGEST = "j" + 38 * "o" + "b"
"""The longest name that a FineTuneJob may have."""
MOST_PODS = 1024
STAGES = [stage for stage in get_args(StageName) if stage != "serve"]


def children_of(stage: str, namespace: str) -> list[Manifest]:
    """The children of a job with the longest name, as the planner makes them."""
    world = World()
    world.run_until(stage)
    found = [
        json.dumps(child).replace(f'"{NAMESPACE}"', f'"{namespace}"').replace("glossary", LONGEST)
        for kind in ("ConfigMap", "Service", "Job")
        for child in world.server.list(kind, NAMESPACE)
        if child["metadata"]["name"].startswith(f"glossary-{stage}-")
    ]
    return [json.loads(each) for each in found]


@pytest.mark.parametrize("stage", STAGES)
def test_the_children_of_a_job_with_the_longest_name_are_accepted(
    api: Api, namespace: str, stage: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    patch = {"metadata": {"labels": labels}}
    api.request("PATCH", path, patch, "application/merge-patch+json")
    children = children_of(stage, namespace)
    assert "Job" in [child["kind"] for child in children]
    for child in children:
        for field in ("resourceVersion", "uid", "creationTimestamp", "generation"):
            child["metadata"].pop(field, None)
        child.pop("status", None)
        stored = api.create(child)
        assert stored["metadata"]["name"].startswith(f"{LONGEST}-{stage}-")
        assert "finalizers" not in stored["metadata"], "a namespace is deleted without the operator"
        assert [each["uid"] for each in stored["metadata"]["ownerReferences"]] == [JOB_UID]
        if child["kind"] == "Job":
            template = child["spec"]["template"]
            metadata = {"name": "pod", "namespace": namespace, **template["metadata"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            assert api.create({**pod, "spec": template["spec"]})["status"]["phase"] == "Pending"


@pytest.mark.parametrize("stage", STAGES)
def test_the_host_names_of_its_pods_are_dns_labels(stage: StageName) -> None:
    host = f"{child_name(LONGEST, stage, 9999)}-{MOST_PODS - 1}"
    assert len(host) <= 63
