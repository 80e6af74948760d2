"""The immutable ConfigMap of an attempt: its run.json."""

import json

from finetune_api.run import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.resources.common import hashed
from finetune_operator.resources.identity import AttemptIdentity

RUN_FILE = "run.json"


def run_configmap(identity: AttemptIdentity, config: RunConfig) -> Manifest:
    """ConfigMap with the RunConfig, in one canonical form so that equal input is equal bytes."""
    text = json.dumps(config.to_wire(), sort_keys=True, indent=1, ensure_ascii=False)
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": identity.metadata(),
            "immutable": True,
            "data": {RUN_FILE: text},
        }
    )
