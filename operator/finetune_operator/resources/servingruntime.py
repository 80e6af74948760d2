"""KServe ServingRuntime with the operator's pinned vLLM container.

KServe's own runtimes follow the version of KServe. This one is namespaced, owned by the endpoint
and named by its content, so that a revision keeps the runtime that it was started with.
"""

from finetune_operator.decision import ENDPOINT_LABEL, Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import (
    add_spec_hash,
    build_labels,
    build_owner_reference,
    compute_digest,
)
from finetune_operator.resources.vllm import ServedRevision

MODEL_FORMAT = "huggingface"
CONTAINER = "kserve-container"
"""KServe mounts the model into the container of this name."""


def build_serving_runtime(served: ServedRevision) -> Manifest:
    """The ServingRuntime `finetune-vllm-<hash8>` of a revision."""
    profile = served.profile.spec
    container = vllm.build_container(CONTAINER, profile, served.settings)
    container["args"] = [escape_go_template(each) for each in container["args"]]
    spec = {
        "supportedModelFormats": [{"name": MODEL_FORMAT, "autoSelect": False}],
        "multiModel": False,
        "containers": [container],
        "volumes": vllm.build_volumes(profile),
    }
    metadata = served.endpoint["metadata"]
    return add_spec_hash(
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {
                "name": f"finetune-vllm-{compute_digest([metadata['uid'], spec], 8)}",
                "namespace": metadata["namespace"],
                "labels": build_labels({ENDPOINT_LABEL: served.endpoint_name}),
                "ownerReferences": [build_owner_reference(served.endpoint)],
            },
            "spec": spec,
        }
    )


def escape_go_template(argument: str) -> str:
    """The argument escaped, because KServe expands Go templates in it."""
    return argument.replace("{{", "{{`{{`}}")
