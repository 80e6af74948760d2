"""The table of architectures that may be packed is what can be measured."""

from __future__ import annotations

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data.packing_support import APART, MIXED, is_packed
from finetune_trainer.runtime.errors import UserError

from hack.measure_packing import keeps_apart

APART_HERE = ("llama", "qwen2", "qwen3_moe", "gemma2", "mixtral", "phi3", "gpt2", "gpt_neox")
MIXED_HERE = ("falcon", "bloom", "mpt", "opt", "mamba", "rwkv", "lfm2", "gpt_oss")


@pytest.mark.parametrize("kind", [*APART_HERE, *MIXED_HERE])
def test_table_says_what_a_tiny_model_does(kind: str) -> None:
    assert keeps_apart(kind) is (kind in APART_HERE)
    assert kind in (APART if kind in APART_HERE else MIXED)


def test_no_architecture_stands_in_both_tables() -> None:
    assert not APART & MIXED
    assert {"llama", "mistral", "qwen3", "gemma3_text", "phi3"} <= APART
    assert {"jamba", "falcon_h1", "zamba2", "recurrent_gemma"} <= MIXED


def spec(packing: bool | None, objective: str = "SFT", method: str = "LoRA") -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "hf://acme/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "objective": objective,
            "method": {"type": method},
            "training": {} if packing is None else {"packing": packing},
        }
    )


@pytest.mark.parametrize(
    ("wanted", "kind", "packed"),
    [
        (spec(None), "llama", True),
        (spec(None, "Completion"), "llama", True),
        (spec(False), "llama", False),
        (spec(None), "falcon", False),
        (spec(False), "falcon", False),
        (spec(None), "of_tomorrow", False),
        (spec(True), "of_tomorrow", True),
        (spec(None, "DPO"), "llama", False),
        (spec(None, "KTO"), "llama", False),
        (spec(None, method="Prefix"), "llama", False),
    ],
)
def test_packing_follows_job_objective_method_and_architecture(
    wanted: FineTuneJobSpec, kind: str, packed: bool
) -> None:
    assert is_packed(wanted, kind) is packed


def test_packing_that_would_mix_examples_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError) as caught:
        is_packed(spec(True), "falcon")
    assert caught.value.failure.reason == "PackingUnsupported"
    assert "training.packing" in (caught.value.failure.remedy or "")
