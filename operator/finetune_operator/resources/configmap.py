"""The immutable ConfigMap of an attempt: its run.json, and which image can read it.

It outlives the attempt's Job, so the next attempt of the stage gets the same from it, whatever
version of the operator is installed by then.
"""

import json
from collections.abc import Mapping
from typing import Any

from finetune_api.run import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.resources.attempt_metadata import AttemptMetadata
from finetune_operator.resources.metadata import hashed

RUN_FILE = "run.json"
IMAGE_ANNOTATION = "finetune.dev/trainer-image"


def run_configmap(
    identity: AttemptMetadata,
    config: RunConfig,
    image: str,
    before: Mapping[str, Any] | None = None,
) -> Manifest:
    """ConfigMap with the RunConfig, in one canonical form so that equal input is equal bytes.

    `before` is the run.json of the attempt before: nothing else of it changes than the attempt's
    number and its host name.
    """
    wire = config.to_wire()
    if before is not None:
        wire = {**before, **{key: wire[key] for key in ("attempt", "masterHost") if key in wire}}
    text = json.dumps(wire, sort_keys=True, indent=1, ensure_ascii=False)
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**identity.metadata(), "annotations": {IMAGE_ANNOTATION: image}},
            "immutable": True,
            "data": {RUN_FILE: text},
        }
    )
