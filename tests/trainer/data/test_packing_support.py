"""The table of architectures that may be packed is what can be measured."""

from __future__ import annotations

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data.packing_support import PACKABLE, UNPACKABLE, should_pack
from finetune_trainer.runtime.errors import UserError

from hack.measure_packing import why_not_separate

PACKABLE_HERE = ("llama", "qwen2", "qwen3_moe", "gemma2", "mixtral", "phi3", "gpt2", "gpt_neox")
UNPACKABLE_HERE = ("falcon", "bloom", "mpt", "opt", "mamba", "rwkv", "lfm2", "gpt_oss")


@pytest.mark.parametrize("kind", [*PACKABLE_HERE, *UNPACKABLE_HERE])
def test_the_table_agrees_with_a_tiny_model(kind: str) -> None:
    assert (why_not_separate(kind) is None) is (kind in PACKABLE_HERE)
    assert kind in (PACKABLE if kind in PACKABLE_HERE else UNPACKABLE)


def test_no_architecture_is_in_both_tables() -> None:
    assert not PACKABLE & UNPACKABLE
    assert {"llama", "mistral", "qwen3", "gemma3_text", "phi3"} <= PACKABLE
    assert {"jamba", "falcon_h1", "zamba2", "recurrent_gemma"} <= UNPACKABLE


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
    assert should_pack(wanted, kind) is packed


def test_packing_that_would_mix_samples_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError) as caught:
        should_pack(spec(True), "falcon")
    assert caught.value.failure.reason == "PackingUnsupported"
    assert "training.packing" in (caught.value.failure.remedy or "")
