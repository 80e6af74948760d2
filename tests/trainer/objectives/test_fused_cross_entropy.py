"""The fused cross-entropy gives the numbers of the plain formula, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import load_base_model
from finetune_trainer.objectives import collate, fused_cross_entropy, sft
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("default")

VOCABULARY, WIDTH, COUNT = 97, 24, 50


def make_head(trained: bool, bias: bool, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    return head.requires_grad_(trained)


def make_inputs(
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, labels, and a different weight for every loss."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(COUNT, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (COUNT,), generator=generator)
    return hidden, labels, torch.randn(COUNT, generator=generator)


def plain_losses(head: torch.nn.Linear, hidden: torch.Tensor, labels: torch.Tensor) -> Any:
    return functional.cross_entropy(head(hidden).float(), labels, reduction="none")


def gradients(losses: torch.Tensor, weights: torch.Tensor, wanted: list[Any]) -> list[Any]:
    return list(torch.autograd.grad((losses * weights).sum(), wanted))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("trained", "kept"), [(False, 2**27), (True, 2**27), (True, 0)], ids=["frozen", "kept", "again"]
)
def test_losses_and_gradients_are_those_of_the_plain_formula(
    trained: bool, kept: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_cross_entropy, "CHUNK_LOGITS", {"cpu": 16 * VOCABULARY, "cuda": 1})
    monkeypatch.setattr(fused_cross_entropy, "MAX_KEPT_LOGITS", kept)
    linear, (hidden, labels, weights) = make_head(trained, bias), make_inputs()
    wanted = [hidden, *(linear.parameters() if trained else [])]
    expected = plain_losses(linear, hidden, labels)
    found = fused_cross_entropy.fused_cross_entropy(linear, hidden, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    pairs = zip(
        gradients(found, weights, wanted), gradients(expected, weights, wanted), strict=True
    )
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_in_bf16_the_error_is_that_of_the_plain_formula(trained: bool) -> None:
    exact, (wide, labels, weights) = make_head(trained, False), make_inputs()
    linear = make_head(trained, False, torch.bfloat16)
    hidden = wide.detach().bfloat16().requires_grad_()
    with torch.no_grad():
        exact.weight.copy_(linear.weight)
        wide.copy_(hidden)
    (truth,) = gradients(plain_losses(exact, wide, labels), weights, [wide])
    (plain,) = gradients(plain_losses(linear, hidden, labels), weights, [hidden])
    (found,) = gradients(
        fused_cross_entropy.fused_cross_entropy(linear, hidden, labels), weights, [hidden]
    )
    assert (found - truth).norm() < 1.3 * (plain - truth).norm()


def test_under_autocast_weights_in_fp32_are_multiplied_in_bf16() -> None:
    linear, (hidden, labels, weights) = make_head(True, False), make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_losses(linear, hidden, labels)
        found = fused_cross_entropy.fused_cross_entropy(linear, hidden, labels)
    assert torch.equal(found, expected)
    wanted = [hidden, linear.weight]
    pairs = zip(
        gradients(found, weights, wanted), gradients(expected, weights, wanted), strict=True
    )
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_logits_of_all_positions_are_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cross_entropy, "CHUNK_LOGITS", {"cpu": 8 * VOCABULARY, "cuda": 1})
    seen: list[int] = []
    plain = functional.log_softmax

    def record_size(logits: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.append(logits.numel())
        return plain(logits, **named)

    monkeypatch.setattr(functional, "log_softmax", record_size)
    hidden, labels, _ = make_inputs()
    fused_cross_entropy.fused_cross_entropy(
        make_head(False, False), hidden, labels
    ).sum().backward()
    assert max(seen) == 8 * VOCABULARY
    assert sum(seen) == COUNT * VOCABULARY


def make_sequence(length: int, seed: int) -> PackedSequence:
    ids = np.random.default_rng(seed).integers(3, 2048, length).astype(np.int32)
    labels = ids.copy()
    labels[:3] = -100
    return PackedSequence(ids, labels, np.arange(length, dtype=np.int32))


SEQUENCES = [make_sequence(17, 1), make_sequence(9, 2), make_sequence(30, 3)]
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def sum_losses(model: torch.nn.Module, sequences: list[PackedSequence]) -> float:
    total = 0.0
    for each in sequences:
        ids = torch.from_numpy(each.input_ids.astype(np.int64))[None]
        labels = torch.from_numpy(each.labels.astype(np.int64))
        logits = model(input_ids=ids).logits[0, :-1]
        total += functional.cross_entropy(
            logits.float(), labels[1:], ignore_index=-100, reduction="sum"
        ).item()
    return total


# gemma2 caps its logits, cohere and granite scale them; llama does not change them.
@pytest.mark.parametrize(
    ("kind", "fused"), [("llama", True), ("gemma2", False), ("cohere", False), ("granite", False)]
)
def test_models_that_change_their_logits_have_the_plain_loss(kind: str, fused: bool) -> None:
    torch.manual_seed(0)
    more = {"granite": {"logits_scaling": 8.0}}.get(kind, {})
    config = AutoConfig.for_model(kind, **SIZES, **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    expected = sum_losses(model, SEQUENCES)
    compute_loss = sft.OutputHeadLoss(model)
    losses = compute_loss(model, collate.collate(SEQUENCES))
    assert compute_loss.is_fused == fused
    assert losses.sum().item() == pytest.approx(expected, rel=1e-5)
    assert compute_loss(model, collate.collate(SEQUENCES)).sum().item() == pytest.approx(
        expected, rel=1e-5
    )
    compute_loss.detach_from_model()
    assert sum_losses(model, SEQUENCES) == expected


@pytest.mark.parametrize(("kind", "fused"), [("llama", True), ("granite", False)])
def test_a_rank_without_labels_also_detects_whether_the_head_can_be_fused(
    kind: str, fused: bool
) -> None:
    more = {"granite": {"logits_scaling": 8.0}}.get(kind, {})
    config = AutoConfig.for_model(kind, **SIZES, **more)
    model = AutoModelForCausalLM.from_config(config)
    compute_loss = sft.OutputHeadLoss(model)
    losses = compute_loss(model, collate.collate([]))
    assert compute_loss.is_fused == fused
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not any(w.grad.any() for w in model.parameters() if w.grad is not None)


def test_a_forward_that_another_library_replaced_is_used_and_restored(
    tiny_model_folder: Path,
) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Doubled(ModelHook):  # type: ignore[misc]
        def post_forward(self, module: Any, output: torch.Tensor) -> torch.Tensor:
            return 2 * output

    model = load_base_model(tiny_model_folder, torch.float32)
    add_hook_to_module(model.get_output_embeddings(), Doubled())
    expected = sum_losses(model, SEQUENCES)
    compute_loss = sft.OutputHeadLoss(model)
    assert compute_loss(model, collate.collate(SEQUENCES)).sum().item() == pytest.approx(
        expected, rel=1e-5
    )
    compute_loss.detach_from_model()
    assert sum_losses(model, SEQUENCES) == expected


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_of_a_model_are_those_of_the_plain_loss(
    tiny_model_folder: Path, trained: bool
) -> None:
    found = []
    for plain in (False, True):
        model = load_base_model(tiny_model_folder, torch.float32)
        model.get_output_embeddings().weight.requires_grad_(trained)
        compute_loss = sft.OutputHeadLoss(model)
        compute_loss._is_fused = not plain
        compute_loss(model, collate.collate(SEQUENCES)).sum().backward()
        assert compute_loss.is_fused != plain
        compute_loss.detach_from_model()
        found.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_head_with_an_adapter_is_not_fused(tiny_model_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_base_model(tiny_model_folder, torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    compute_loss = sft.OutputHeadLoss(adapted)
    compute_loss(adapted, collate.collate(SEQUENCES)).sum().backward()
    assert not compute_loss.is_fused
    compute_loss.detach_from_model()
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)
