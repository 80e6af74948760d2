"""The headless Service through which the pods of a training gang find index 0."""

from finetune_api.protocol import RENDEZVOUS_PORT

from finetune_operator.decision import Manifest
from finetune_operator.resources.metadata import AttemptMetadata, add_spec_hash


def build_rendezvous_service(metadata: AttemptMetadata) -> Manifest:
    """Headless Service. Its DNS records exist before the pods are ready, because ranks resolve
    them while they start."""
    return add_spec_hash(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata.to_manifest(),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": metadata.selector,
                "ports": [
                    {
                        "name": "rendezvous",
                        "port": RENDEZVOUS_PORT,
                        "targetPort": RENDEZVOUS_PORT,
                        "protocol": "TCP",
                    }
                ],
            },
        }
    )
