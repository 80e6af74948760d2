"""The default learning rate."""

from __future__ import annotations

import pytest

from tests.unit.planner.facts import SMOL
from tests.unit.planner.planning import plan


@pytest.mark.parametrize(
    ("method", "objective", "rate"),
    [
        ("Full", "SFT", 1e-5),
        ("Full", "DPO", 1e-6),
        ("Full", "ORPO", 5e-6),
        ("Full", "SimPO", 5e-7),
        ("LoRA", "SFT", 1e-4),
        ("DoRA", "DPO", 1e-5),
        ("QLoRA", "GRPO", 1e-5),
        ("LoRA", "Reward", 1e-4),
        ("AdaLoRA", "SFT", 5e-4),
        ("IA3", "SFT", 3e-3),
        ("IA3", "KTO", 3e-4),
        ("Prefix", "Completion", 1e-2),
    ],
)
def test_the_learning_rate_follows_method_and_objective(
    method: str, objective: str, rate: float
) -> None:
    fields: dict[str, object] = {"method": {"type": method}, "objective": objective}
    if objective == "GRPO":
        fields["grpo"] = {"rewards": [{"type": "exactMatch"}]}
    assert plan(SMOL, **fields).learning_rate == rate
