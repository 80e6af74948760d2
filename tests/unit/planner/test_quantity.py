"""Quantities are parsed as Kubernetes parses them."""

from __future__ import annotations

import pytest
from finetune_operator.planner.quantity import floor_quantity


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        ("80Gi", 80 * 2**30),
        ("1500m", 1),
        ("9223372036854775807", 2**63 - 1),
        ("10000000000G", 2**63 - 1),
    ],
)
def test_a_quantity_is_rounded_down_and_clamped_to_64_bits(quantity: str, number: int) -> None:
    assert floor_quantity(quantity) == number
