"""How long a training pod may take to end: the time of one checkpoint, with a margin.

What is measured wins over what is computed. A node that is drained waits for the longest of its
pods, so nobody gets more than they need.
"""

import math

from finetune_api.jobstatus import CheckpointStatus
from finetune_api.run import WorkspaceFacts

LEAST = 120
MOST = 3600
MARGIN = 3.0
"""A volume that everybody writes to, because their node is drained too, is slower."""
BESIDE = 60.0
"""Seconds to end the step that runs, and to agree on the end."""


def grace_seconds(
    checkpoint: CheckpointStatus | None,
    checkpoint_bytes: int | None,
    workspace: WorkspaceFacts | None,
) -> int:
    """terminationGracePeriodSeconds; the least where nothing is known."""
    took = checkpoint.seconds if checkpoint else None
    if took is None and checkpoint_bytes is not None and workspace is not None:
        took = checkpoint_bytes / workspace.write_bytes_per_second
    if took is None:
        return LEAST
    return math.ceil(max(LEAST, min(MOST, MARGIN * took + BESIDE)))
