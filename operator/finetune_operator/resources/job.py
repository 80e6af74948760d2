"""The batch/v1 Job of an attempt: one gang, no second chance of its own.

backoffLimit is 0 because a gang is replaced whole, as a new attempt; there is no
podFailurePolicy because a Job with one waits for ever for a pod on a dead node.
"""

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.attempt_metadata import AttemptMetadata
from finetune_operator.resources.metadata import hashed
from finetune_operator.resources.pod import PodShape, stage_pod_spec


def stage_job(identity: AttemptMetadata, shape: PodShape, settings: Settings) -> Manifest:
    """Job of one attempt; Indexed where its pods must find each other."""
    return hashed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": identity.metadata(),
            "spec": {
                "completions": shape.nodes,
                "parallelism": shape.nodes,
                "completionMode": "Indexed" if shape.rendezvous else "NonIndexed",
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": identity.labels},
                    "spec": stage_pod_spec(identity, shape, settings),
                },
            },
        }
    )
