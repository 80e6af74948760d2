"""Kubernetes quantities as numbers."""

import math
from decimal import Decimal

GIB = 1024**3
MIB = 1024**2
LARGEST = 2**63 - 1
"""Kubernetes clamps larger quantities to this number, and rejects larger numbers in a status."""
_SUFFIXES = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
}


def parse_quantity(quantity: str) -> Decimal:
    """The number that a quantity such as 80Gi, 500m or 1e3 means."""
    for length in (2, 1):
        factor = _SUFFIXES.get(quantity[-length:])
        if factor is not None:
            return Decimal(quantity[:-length]) * factor
    return Decimal(quantity)


def floor_quantity(quantity: str) -> int:
    """The quantity rounded down to an integer: bytes of memory, or full CPUs."""
    return min(math.floor(parse_quantity(quantity)), LARGEST)


def multiply_quantity(quantity: str, count: int) -> str:
    """`count` times a quantity, in the same unit."""
    for length in (2, 1):
        if quantity[-length:] in _SUFFIXES:
            return f"{_format_decimal(Decimal(quantity[:-length]) * count)}{quantity[-length:]}"
    return _format_decimal(Decimal(quantity) * count)


def format_bytes(number: int) -> str:
    """Bytes for messages, in GiB, or in MiB below a tenth of a GiB."""
    if number < GIB / 10:
        return f"{number / MIB:.1f} MiB"
    return f"{number / GIB:.1f} GiB"


def _format_decimal(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
