"""The name by which messages of a rank identify its host."""

import os
import socket

from finetune_api.protocol import NODE_NAME_ENV


def get_host_name() -> str:
    """The name of the node for a pod on its network, else that of the pod.

    On the host network gethostname() returns the name that the machine has in the kernel, which may
    differ from the name of the node in Kubernetes.
    """
    return os.environ.get(NODE_NAME_ENV) or socket.gethostname()
