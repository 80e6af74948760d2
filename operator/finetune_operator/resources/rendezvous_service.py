"""The headless Service through which the pods of a training gang find index 0."""

from finetune_api.run import RENDEZVOUS_PORT

from finetune_operator.decision import Manifest
from finetune_operator.resources.attempt_metadata import AttemptMetadata
from finetune_operator.resources.metadata import hashed


def rendezvous_service(identity: AttemptMetadata) -> Manifest:
    """Headless Service; addresses are published before pods are ready, as ranks wait for names."""
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": identity.metadata(),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": identity.selector,
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
