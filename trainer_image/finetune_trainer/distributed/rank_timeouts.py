"""After which times a rank without a sign of life is named, killed, and no longer waited for.

All of them are fractions of the collective timeout, which an AcceleratorProfile sets. heartbeat and
watchdog apply them; the operator's own limit is in its policy stalled_rank.
"""

import os
from datetime import timedelta

from finetune_api.protocol import COLLECTIVE_TIMEOUT_ENV

DEFAULT_TIMEOUT_SECONDS = 900.0
BEATS_PER_TIMEOUT = 60
"""Beats during the collective timeout; the interval is at most one second."""
SILENT_FRACTION = 0.1
"""Fraction of the collective timeout after which a rank without a beat is named."""
KILL_FRACTION = 0.4
"""Fraction after which the first process of its pod kills a rank without a beat."""
GIVE_UP_FRACTION = 0.8
"""Fraction after which ranks that have waited all the time end."""


def collective_timeout() -> timedelta:
    """How long a rank waits for others in a training step (FINETUNE_COLLECTIVE_TIMEOUT)."""
    return timedelta(seconds=float(os.environ.get(COLLECTIVE_TIMEOUT_ENV, DEFAULT_TIMEOUT_SECONDS)))


def silent_seconds() -> float:
    """Seconds without a beat after which a rank is named."""
    return SILENT_FRACTION * collective_timeout().total_seconds()
