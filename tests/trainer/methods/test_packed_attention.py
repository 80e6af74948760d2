"""Packed samples on a CPU: each attends to itself only, and results do not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import packed_attention
from finetune_trainer.objectives import collate, sft
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

pytestmark = pytest.mark.filterwarnings("default")

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture(autouse=True)
def registered_again() -> Iterator[None]:
    yield
    packed_attention.register_packed_attention()


def model_of(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def packed(*lengths: int) -> PackedSequence:
    ids = np.random.default_rng(sum(lengths)).integers(3, 512, sum(lengths)).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return PackedSequence(ids, ids.copy(), positions)


ROWS = [packed(17, 1, 30), packed(40, 5)]


def losses_and_gradients(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    compute_loss = sft.OutputHeadLoss(model)
    losses = compute_loss(model, collate.collate(ROWS))
    compute_loss.detach_from_model()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return losses.detach(), list(torch.autograd.grad(losses.sum(), weights))


def lengths_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the sequence lengths with which the kernel is called."""
    seen: list[int] = []
    kernel = functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        seen.append(query.shape[2])
        return kernel(query, *more, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("short", [0, 20, 100])
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients_are_those_with_the_mask(
    recompute: bool, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "MAX_EAGER_LENGTH", short)
    model = model_of("llama").train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    expected = losses_and_gradients(model)
    packed_attention.register_packed_attention()
    seen = lengths_seen(monkeypatch)
    found = losses_and_gradients(model)
    # Padding belongs to the sample before it, so the second row is 40 and 8.
    kernels = [length for length in (17, 1, 30, 40, 8) if length > short]
    assert seen == kernels * 2 * (2 if recompute else 1)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_in_bf16_short_samples_are_about_as_accurate_as_with_the_kernel() -> None:
    torch.manual_seed(0)
    exact = [3 * torch.randn(1, heads, 50, 16) for heads in (4, 2, 2)]
    rounded = [tensor.bfloat16() for tensor in exact]
    wide = [tensor.double() for tensor in rounded]
    truth = packed_attention.eager_causal_attention(*wide)
    named = {"is_causal": True, "enable_gqa": True}
    kernel = functional.scaled_dot_product_attention(*rounded, **named).transpose(1, 2)
    found = packed_attention.eager_causal_attention(*rounded)
    assert found.shape == kernel.shape
    assert (found - truth).norm() < 1.5 * (kernel - truth).norm()


def test_dropout_drops_weights() -> None:
    torch.manual_seed(0)
    query, key = torch.zeros(2, 1, 1, 200, 4)
    some = packed_attention.eager_causal_attention(
        query, key, torch.ones(1, 1, 200, 4), dropout=0.5
    )
    assert some.mean().item() == pytest.approx(1.0, abs=0.1)
    assert some.std() > 0


def test_a_sliding_window_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mistral", sliding_window=8)
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    expected = losses_and_gradients(model)[0]
    packed_attention.register_packed_attention()
    seen = lengths_seen(monkeypatch)
    assert torch.equal(losses_and_gradients(model)[0], expected)
    assert set(seen) == {48}


def causal(*lengths: int) -> torch.Tensor:
    blocks = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    return torch.block_diag(*blocks).bool()[None, None]


def test_sample_spans_are_read_from_the_mask() -> None:
    mask = torch.cat([causal(3, 1, 4), causal(8)])
    assert packed_attention.sample_spans(mask) == [
        [slice(0, 3), slice(3, 4), slice(4, 8)],
        [slice(0, 8)],
    ]


@pytest.mark.parametrize("change", ["window", "prefix", "padding", "numbers", "cache"])
def test_any_other_mask_has_no_sample_spans(change: str) -> None:
    mask = causal(3, 5)
    if change == "window":
        mask[0, 0, 7, 3] = False
    elif change == "prefix":
        mask[0, 0, 0, 1] = True
    elif change == "padding":
        mask[0, 0, :, 7] = False
    elif change == "numbers":
        mask = torch.zeros(1, 1, 8, 8).masked_fill(~mask, float("-inf"))
    else:
        mask = mask[:, :, 4:]
    assert packed_attention.sample_spans(mask) is None
