"""How long an artifact stays in the workspace once nothing refers to it."""

import math
import re
from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import PatternMessage

ALWAYS = "Always"
WHILE_REFERENCED = "WhileReferenced"
RETENTION_PATTERN = rf"^({ALWAYS}|{WHILE_REFERENCED}|[1-9][0-9]{{0,4}}h)$"
ArtifactRetention = Annotated[
    str,
    StringConstraints(pattern=RETENTION_PATTERN, max_length=16),
    PatternMessage("must be Always, WhileReferenced, or a number of hours such as 720h"),
]


def retention_seconds(retention: str) -> float:
    """Seconds that an artifact stays without a reference. Raises ValueError for another text."""
    if not re.fullmatch(RETENTION_PATTERN, retention):
        raise ValueError(f"{retention!r} is not {ALWAYS}, {WHILE_REFERENCED} or hours such as 720h")
    if retention == ALWAYS:
        return math.inf
    return 0.0 if retention == WHILE_REFERENCED else int(retention.removesuffix("h")) * 3600.0
