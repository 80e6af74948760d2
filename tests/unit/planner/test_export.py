"""The memory of export, and the refusal when pods without devices may not request it."""

from __future__ import annotations

import pytest
from finetune_api.facts import ModelFacts
from finetune_operator.planner.export import check_export_memory, export_memory_bytes
from finetune_operator.planner.quantity import GIB

from tests.unit.planner.facts import LLAMA_8B, LLAMA_70B, SMOL, model

# Eight experts of Mixtral's size in each of 32 layers.
MIXTRAL = model(46_702_792_704, 32, 4096, 14336, (32, 8), 32000)


@pytest.mark.parametrize(
    ("facts", "gib"), [(SMOL, 1.6), (LLAMA_8B, 21.8), (LLAMA_70B, 144.2), (MIXTRAL, 98.5)]
)
def test_export_holds_the_weights_and_fp32_copies_of_the_largest(
    facts: ModelFacts, gib: float
) -> None:
    assert export_memory_bytes(facts) / GIB == pytest.approx(gib, abs=0.05)


def test_exactly_enough_memory_is_enough_and_without_a_maximum_nothing_is_refused() -> None:
    need = export_memory_bytes(LLAMA_70B)
    assert check_export_memory(LLAMA_70B, str(need)) is None
    assert check_export_memory(LLAMA_70B, str(need - 1)) is not None
    assert check_export_memory(LLAMA_70B, None) is None


def test_too_little_memory_is_refused_with_figures_and_remedies() -> None:
    refusal = check_export_memory(LLAMA_70B, "60Gi")
    assert refusal is not None
    assert (refusal.stage, refusal.reason) == ("export", "DoesNotFit")
    assert refusal.message == (
        "exporting 70.55 B parameters takes about 144.2 GiB of host memory; pods without devices "
        "may request 60Gi"
    )
    assert refusal.remedy == (
        "give cpuPods nodes with 144.2 GiB for a pod and raise cpuPods.maxMemory in the chart; or "
        "use a smaller model"
    )
