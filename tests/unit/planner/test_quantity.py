"""Quantities are parsed as Kubernetes parses them."""

from __future__ import annotations

import pytest
from finetune_operator.planner.quantity import floor_quantity, multiply_quantity, parse_quantity
from hypothesis import given, settings
from hypothesis import strategies as st


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


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
    st.integers(1, 64),
)
def test_a_multiple_of_a_quantity_has_the_multiple_of_its_value(
    number: int, unit: str, count: int
) -> None:
    assert (
        parse_quantity(multiply_quantity(f"{number}{unit}", count))
        == parse_quantity(f"{number}{unit}") * count
    )
