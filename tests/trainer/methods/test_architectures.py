"""Training computes what the architecture does, whichever kernels, packing and fusing it uses.

Continuous integration takes one architecture for each feature; `make matrix` takes all of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_operator.planner.activations import EAGER_ARCHITECTURES
from finetune_trainer import methods
from finetune_trainer.data.packing_support import PACKABLE
from finetune_trainer.methods.base_model import choose_attention
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.sft import OutputHeadLoss
from finetune_trainer.objectives.token_logprobs import TokenLogpsHook
from finetune_trainer.sources.untrainable import UNTRAINABLE
from transformers import FalconConfig

from tests.trainer.architectures import (
    Computed,
    as_sequences,
    compute_as_in_training,
    compute_eager,
    load_for_training,
    write_model,
)
from tests.trainer.families import tiny_deepseek

ARCHITECTURES = [
    "llama",
    "mistral",  # sliding windows
    "mixtral",  # experts
    "gemma2",  # caps scores and logits, scales queries
    "gpt_oss",  # attention sinks
    "gpt_neo",  # local attention
    "cohere",  # scales logits
    "granite",  # scales scores and logits
    "smollm3",  # layers without rotary positions
    "llama4_text",  # chunked attention
    "mpt",  # ALiBi
    "lfm2",  # convolutions
]
REFUSED = ["roberta", "glm_moe_dsa"]
"""Some of UNTRAINABLE."""
LOGITS_CHANGED = ["gemma2", "cohere"]
if os.environ.get("FINETUNE_MATRIX") == "all":
    ARCHITECTURES += [
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "gemma",
        "gemma3_text",
        "vaultgemma",
        "phi",
        "phi3",
        "phimoe",
        "falcon",
        "glm",
        "glm4",
        "gpt2",
        "olmo2",
        "olmo3",
        "cohere2",
        "granitemoe",
        "starcoder2",
        "nemotron",
        "bloom",
        "nanochat",
        "exaone4",
    ]
    REFUSED += ["camembert", "deepseek_v32"]
    LOGITS_CHANGED += ["granite", "nanochat"]
CAPPED = ("gemma2", "vaultgemma")
WITHOUT_SCORES = ("falcon_mamba", "mamba", "mamba2", "reformer", "rwkv", "xlstm")
"""Recurrent models, and one that attends to chunks."""


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the model of a model_type; written once."""
    root = tmp_path_factory.mktemp("models")
    return functools.cache(lambda kind: write_model(root / kind, kind))


def assert_same(ours: Computed, eager: Computed) -> None:
    assert torch.allclose(ours.logits, eager.logits, atol=1e-4 * float(eager.logits.abs().max()))
    assert torch.allclose(ours.losses, eager.losses, atol=1e-4)
    assert ours.gradients.keys() == eager.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in eager.gradients.values())
    for name, gradient in eager.gradients.items():
        assert torch.allclose(ours.gradients[name], gradient, atol=1e-4 * largest), name


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_loss_and_gradients_are_those_of_each_sample_alone_in_eager_mode(
    model_of: Callable[[str], Path], kind: str
) -> None:
    ours = compute_as_in_training(model_of(kind), is_packed=kind in PACKABLE)
    assert_same(ours, compute_eager(model_of(kind)))


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_that_prepare_refuses_would_be_trained_wrongly(
    model_of: Callable[[str], Path], kind: str
) -> None:
    assert kind in UNTRAINABLE
    folder = model_of(kind)
    ours, eager = compute_as_in_training(folder, is_packed=False), compute_eager(folder)
    assert not torch.allclose(ours.losses, eager.losses, atol=1e-2)


def test_low_rank_keys_and_values_too(tmp_path: Path) -> None:
    tiny_deepseek(tmp_path / "model")
    ours = compute_as_in_training(tmp_path / "model", is_packed=True)
    assert_same(ours, compute_eager(tmp_path / "model"))


@pytest.mark.parametrize("kind", CAPPED)
def test_a_kernel_without_the_cap_would_show(
    tmp_path: Path, model_of: Callable[[str], Path], kind: str
) -> None:
    """The models of these tests are such that a missing feature changes the loss."""
    with_cap = compute_eager(model_of(kind)).losses
    write_model(tmp_path, kind, attn_logit_softcapping=1000.0)
    assert float((compute_eager(tmp_path).losses - with_cap).abs().max()) > 0.01


@pytest.mark.parametrize("kind", LOGITS_CHANGED)
def test_logps_of_completions_are_those_of_changed_logits(
    model_of: Callable[[str], Path], kind: str
) -> None:
    model = load_for_training(model_of(kind))
    hook = TokenLogpsHook(model, temperature=1.0, device=torch.device("cpu"))
    logps = hook(model, collate(as_sequences(is_packed=True))).logps
    assert torch.allclose(-logps, compute_eager(model_of(kind)).losses, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "is_fused"), [("llama", True), ("gemma2", False), ("cohere", False)]
)
def test_logits_that_the_model_changes_are_not_fused_away(
    model_of: Callable[[str], Path], kind: str, is_fused: bool
) -> None:
    model = load_for_training(model_of(kind))
    loss = OutputHeadLoss(model)
    loss(model, collate(as_sequences(is_packed=True)))
    assert loss.is_fused is is_fused


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_every_rank_gets_the_kernel_that_the_architecture_needs(
    model_of: Callable[[str], Path], kind: str, attention: str
) -> None:
    """Under FSDP only rank 0 loads the weights."""
    loaded = methods.load_base_model(model_of(kind), torch.float32, "sdpa")
    empty = methods.make_meta_model(model_of(kind), torch.float32, "sdpa")
    assert loaded.config._attn_implementation == attention
    assert empty.config._attn_implementation == attention


def test_the_planner_knows_which_architectures_store_their_scores() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    for kind, listed in CAUSAL.items():
        for name in (listed,) if isinstance(listed, str) else listed:
            supports_sdpa = getattr(transformers, name)._supports_sdpa
            stores = kind in CAPPED or not (supports_sdpa or kind in WITHOUT_SCORES)
            assert name.startswith(EAGER_ARCHITECTURES) is stores, name


@pytest.mark.parametrize(("requested", "chosen"), [("flash_attention_2", "sdpa"), ("sdpa", "sdpa")])
def test_alibi_of_falcon_is_not_given_to_flash_attention(requested: str, chosen: str) -> None:
    assert choose_attention(FalconConfig(alibi=True), requested) == chosen
    assert choose_attention(FalconConfig(alibi=False), requested) == requested
