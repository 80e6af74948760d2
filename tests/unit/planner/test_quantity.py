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
        ("1e99", 2**63 - 1),
        ("1.5e3", 1500),
        ("15E-1", 1),
        ("2P", 2 * 10**15),
        (".5Pi", 2**49),
        ("+4.", 4),
    ],
)
def test_a_quantity_is_rounded_down_and_clamped_to_64_bits(quantity: str, number: int) -> None:
    assert floor_quantity(quantity) == number


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi", "e3", "E-1"]),
    st.integers(1, 64),
)
def test_a_multiple_of_a_quantity_has_the_multiple_of_its_value(
    number: int, unit: str, count: int
) -> None:
    assert (
        parse_quantity(multiply_quantity(f"{number}{unit}", count))
        == parse_quantity(f"{number}{unit}") * count
    )
