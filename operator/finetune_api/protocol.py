"""What the operator and a stage agree on apart from messages: names, paths, ports, exit codes.

The messages are run_config (in), progress (meanwhile) and stage_result (out).
"""

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

StageName = Literal["prepare", "train", "evaluate", "export", "serve"]
Strategy = Literal["DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A count that fits into an int64 field of a status."""
RUN_CONFIG_PATH = "/etc/finetune/run.json"
TERMINATION_PATH = "/dev/termination-log"
TERMINATION_MAX_BYTES = 4096
TELEMETRY_PORT = 9400
RENDEZVOUS_PORT = 29500
COLLECTIVE_TIMEOUT_ENV = "FINETUNE_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds that a rank waits for the other ranks in a collective."""
RENDEZVOUS_TIMEOUT_ENV = "FINETUNE_RENDEZVOUS_TIMEOUT"
"""Environment variable: seconds that a rank waits until all ranks have started."""
CLOUD_IDENTITY_ENV = "FINETUNE_CLOUD_IDENTITY"
"""Environment variable: set where the pod runs as the ServiceAccount that the job names, for which
the cloud may give it credentials."""
NODE_NAME_ENV = "FINETUNE_NODE_NAME"
"""Environment variable: the name of the pod's node, only in a pod on the network of its node."""
SECRET_ENV_PREFIX = "FINETUNE_SECRET_"
MODEL_SECRET_PREFIX = SECRET_ENV_PREFIX + "MODEL_"
ADAPTER_SECRET_PREFIX = SECRET_ENV_PREFIX + "ADAPTER_"
DATA_SECRET_PREFIXES = tuple(f"{SECRET_ENV_PREFIX}DATA_{index}_" for index in range(16))
"""One for each item of dataset.train, so that a source sees no other source's Secret."""
VALIDATION_SECRET_PREFIX = SECRET_ENV_PREFIX + "VALIDATION_"
REWARD_SECRET_PREFIX = SECRET_ENV_PREFIX + "REWARD_"
FINITE = ConfigDict(allow_inf_nan=False)
"""For models that are copied into a status: JSON has neither NaN nor infinity."""


class ExitCode(IntEnum):
    """Exit code of a stage's process, by which the operator decides about another attempt."""

    OK = 0
    USER_ERROR = 64
    """The input cannot work: the operator does not try again."""
    RETRYABLE = 75
    """Something outside the input failed: the operator tries again while restarts are left."""
    PREEMPTED = 76
    """Stopped on request after a checkpoint: the operator tries again and counts no restart."""
