"""The memory of export, and the refusal when pods without devices may not request it."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.facts import ModelFacts
from finetune_operator.planner.export import check_export_memory, export_memory_bytes
from finetune_operator.planner.parameters import trainable_parameters
from finetune_operator.planner.quantity import GIB

from tests.unit.planner.facts import LLAMA_8B, LLAMA_70B, SMOL, model, spec

# Eight experts of Mixtral's size in each of 32 layers.
MIXTRAL = model(46_702_792_704, 32, 4096, 14336, (32, 8), 32000)


@pytest.mark.parametrize(
    ("facts", "gib"), [(SMOL, 1.7), (LLAMA_8B, 24.5), (LLAMA_70B, 154.6), (MIXTRAL, 165.1)]
)
def test_export_holds_the_weights_and_fp32_copies_of_the_largest(
    facts: ModelFacts, gib: float
) -> None:
    full = spec(method={"type": "Full"})
    assert export_memory_bytes(full, facts) / GIB == pytest.approx(gib, abs=0.05)


def test_the_inputs_of_all_experts_are_held_twice() -> None:
    """They are one weight in memory and two in the files."""
    inputs = 32 * 8 * 2 * 14336 * 4096 * 2
    assert export_memory_bytes(spec(), MIXTRAL) > MIXTRAL.weight_bytes + inputs


@pytest.mark.parametrize(
    "lora", [{"rank": 256}, {"rank": 8, "modulesToSave": ["embed_tokens", "lm_head"]}]
)
def test_adapters_and_trained_copies_are_held_in_fp32(lora: dict[str, Any]) -> None:
    job = spec(method={"lora": lora})
    more = export_memory_bytes(job, LLAMA_8B) - export_memory_bytes(
        spec(method={"type": "Full"}), LLAMA_8B
    )
    assert more > 4 * trainable_parameters(LLAMA_8B, job.method) > GIB


def test_exactly_enough_memory_is_enough_and_without_a_maximum_nothing_is_refused() -> None:
    need = export_memory_bytes(spec(), LLAMA_70B)
    assert check_export_memory(spec(), LLAMA_70B, str(need)) is None
    assert check_export_memory(spec(), LLAMA_70B, str(need - 1)) is not None
    assert check_export_memory(spec(), LLAMA_70B, None) is None


def test_too_little_memory_is_refused_with_figures_and_remedies() -> None:
    refusal = check_export_memory(spec(), LLAMA_70B, "60Gi")
    assert refusal is not None
    assert (refusal.stage, refusal.reason) == ("export", "DoesNotFit")
    assert refusal.message == (
        "exporting 70.55 B parameters takes about 155.5 GiB of host memory; pods without devices "
        "may request 60Gi"
    )
    assert refusal.remedy == (
        "give cpuPods nodes with 155.5 GiB for a pod and raise cpuPods.maxMemory in the chart; or "
        "use a smaller model"
    )
