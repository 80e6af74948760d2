"""The seconds for which an artifact is retained."""

import math

import pytest
from finetune_api.artifact_retention import retention_seconds
from finetune_api.jobspec import Export
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("retention", "seconds"),
    [("Always", math.inf), ("WhileReferenced", 0), ("1h", 3600), ("99999h", 99999 * 3600)],
)
def test_a_retention_is_a_number_of_seconds(retention: str, seconds: float) -> None:
    assert Export(retain=retention).retain == retention
    assert retention_seconds(retention) == seconds


@pytest.mark.parametrize("retention", ["", "0h", "30d", "720", "-1h", "1.5h", "100000h", "Never"])
def test_another_text_is_refused(retention: str) -> None:
    with pytest.raises(ValidationError):
        Export(retain=retention)
    with pytest.raises(ValueError, match="is not Always"):
        retention_seconds(retention)
