"""The immutable ConfigMap of an attempt: its run.json, and the image that can read it.

It outlives the attempt's Job. The next attempt of the stage copies both from it, regardless of the
version of the operator that is installed by then.
"""

import json
from collections.abc import Mapping
from typing import Any

from finetune_api.run_config import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.resources.metadata import AttemptMetadata, add_spec_hash

RUN_FILE = "run.json"
IMAGE_ANNOTATION = "finetune.dev/trainer-image"


def build_run_configmap(
    metadata: AttemptMetadata,
    config: RunConfig,
    image: str,
    before: Mapping[str, Any] | None = None,
) -> Manifest:
    """ConfigMap with the RunConfig, in one canonical form so that equal input is equal bytes.

    `before` is the run.json of the previous attempt: only the attempt's number and its host name
    change in it.
    """
    wire = config.to_wire()
    if before is not None:
        wire = {**before, **{key: wire[key] for key in ("attempt", "masterHost") if key in wire}}
    text = json.dumps(wire, sort_keys=True, indent=1, ensure_ascii=False)
    return add_spec_hash(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**metadata.to_manifest(), "annotations": {IMAGE_ANNOTATION: image}},
            "immutable": True,
            "data": {RUN_FILE: text},
        }
    )
