"""The batch/v1 Job of an attempt: one gang, which Kubernetes never retries.

backoffLimit is 0 because the operator replaces a gang as a whole, with a new attempt; there is no
podFailurePolicy because a Job with one waits indefinitely for a pod on a dead node.
"""

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.metadata import AttemptMetadata, add_spec_hash, build_pod_metadata
from finetune_operator.resources.pod import StagePods, build_stage_pod_spec


def build_stage_job(metadata: AttemptMetadata, pods: StagePods, settings: Settings) -> Manifest:
    """Job of one attempt; Indexed where its pods must find each other."""
    common, pool = metadata.to_manifest(), pods.profile or settings.cpu_pods
    given = [pods.metadata, pool.pod_metadata]
    return add_spec_hash(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {**common, "labels": {**common["labels"], **metadata.queue_labels}},
            "spec": {
                "completions": pods.nodes,
                "parallelism": pods.nodes,
                "completionMode": "Indexed" if pods.has_rendezvous else "NonIndexed",
                "backoffLimit": 0,
                "template": {
                    "metadata": build_pod_metadata(metadata.labels, given),
                    "spec": build_stage_pod_spec(metadata, pods, settings),
                },
            },
        }
    )
