"""KServe ServingRuntime: our own pinned vLLM container, so that no version of KServe changes it.

KServe's own runtimes carry an image tag that follows KServe. Ours is namespaced, owned by the
endpoint and named by its content; a revision keeps the one that it was started with.
"""

from finetune_operator.decision import ENDPOINT_LABEL, Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import digest_of, hashed, labels, owner_reference
from finetune_operator.resources.vllm import ServedRevision

MODEL_FORMAT = "huggingface"
CONTAINER = "kserve-container"
"""The name by which KServe finds the container to mount the model into."""


def serving_runtime(served: ServedRevision) -> Manifest:
    """The ServingRuntime `finetune-vllm-<hash8>` of a revision."""
    profile = served.profile.spec
    container = vllm.container(CONTAINER, profile, served.settings)
    container["args"] = [go_template_literal(each) for each in container["args"]]
    spec = {
        "supportedModelFormats": [{"name": MODEL_FORMAT, "autoSelect": False}],
        "multiModel": False,
        "containers": [container],
        "volumes": vllm.volumes(profile),
    }
    metadata = served.endpoint["metadata"]
    return hashed(
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {
                "name": f"finetune-vllm-{digest_of([metadata['uid'], spec], 8)}",
                "namespace": metadata["namespace"],
                "labels": labels({ENDPOINT_LABEL: served.endpoint_name}),
                "ownerReferences": [owner_reference(served.endpoint)],
            },
            "spec": spec,
        }
    )


def go_template_literal(argument: str) -> str:
    """The argument such that KServe, which expands Go templates in it, leaves it as it is."""
    return argument.replace("{{", "{{`{{`}}")
