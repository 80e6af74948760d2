"""What platforms do to pods, on the real cluster."""

from __future__ import annotations

from typing import Any

from finetune_operator.resources.security_context import (
    CONTAINER_SECURITY_CONTEXT,
    build_pod_security_context,
)

from hack.demo.platform import VALUES, Platform
from tests.e2e.jobs import until

ASSIGNED = 1000650000
"""A user as OpenShift assigns it; no image has an entry for it."""
SCRIPT = """
import getpass, os
import torch._inductor.codecache, finetune_trainer.train
print(os.getuid(), getpass.getuser(), os.path.expanduser("~"))
"""


def test_the_trainer_starts_as_a_user_that_the_cluster_assigns(running: Platform) -> None:
    name = "assigned-user"
    image = f"{VALUES['trainer.image.repository']}:{VALUES['trainer.image.tag']}"
    user = {"runAsUser": ASSIGNED, "fsGroup": ASSIGNED}
    container: dict[str, Any] = {
        "name": "trainer",
        "image": image,
        "command": ["python", "-c", SCRIPT],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "finetune"}],
        "securityContext": CONTAINER_SECURITY_CONTEXT,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    running.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "securityContext": build_pod_security_context(None) | user,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        }
    )

    def ended() -> str | None:
        phase = str(running.kubectl.json("get", "pod", name)["status"].get("phase"))
        return phase if phase in ("Succeeded", "Failed") else None

    phase = until("the end of the pod", 120, ended, every=1.0)
    log = running.kubectl.run("logs", name)
    running.kubectl.run("delete", "pod", name)
    assert phase == "Succeeded", log
    assert log.split()[-3:] == [str(ASSIGNED), "finetune", "/tmp"]
