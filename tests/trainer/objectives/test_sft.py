"""The SFT loss: a sample has the same loss packed, padded or alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import load_base_model
from finetune_trainer.objectives import collate, fused_cross_entropy, sft
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.jobs import token_array

pytestmark = pytest.mark.filterwarnings("default")


def make_sample(length: int, prompt: int, seed: int) -> PackedSequence:
    generator = np.random.default_rng(seed)
    ids = generator.integers(3, 2048, length).astype(np.int32)
    labels = ids.copy()
    labels[:prompt] = -100
    return PackedSequence(ids, labels, np.arange(length, dtype=np.int32))


def pack(*sequences: PackedSequence) -> PackedSequence:
    return PackedSequence(
        np.concatenate([row.input_ids for row in sequences]),
        np.concatenate([row.labels for row in sequences]),
        np.concatenate([row.position_ids for row in sequences]),
    )


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = load_base_model(tiny_model_folder, torch.float32)
    return loaded.eval()


def reference_loss(model: torch.nn.Module, row: PackedSequence) -> torch.Tensor:
    """A sample alone, by the definition of cross-entropy."""
    ids = torch.from_numpy(token_array(row))[None]
    labels = torch.from_numpy(row.labels.astype(np.int64))
    logits = model(input_ids=ids).logits[0, :-1]
    return functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")


SAMPLES = [
    make_sample(17, 5, 1),
    make_sample(9, 1, 2),
    make_sample(30, 12, 3),
    make_sample(12, 0, 4),
]


@pytest.mark.parametrize("flatten", [False, True])
def test_packed_samples_have_the_losses_of_single_ones(
    model: torch.nn.Module, flatten: bool
) -> None:
    rows = [pack(*SAMPLES[:2]), pack(*SAMPLES[2:])]
    compute_loss = sft.OutputHeadLoss(model)
    losses = compute_loss(model, collate.collate(rows, flatten))
    compute_loss.detach_from_model()
    alone = [reference_loss(model, row) for row in SAMPLES]
    assert len(losses) == sum(map(collate.count_trained_tokens, rows))
    assert losses.sum().item() == pytest.approx(sum(alone).item(), rel=1e-6)
    lengths = [collate.count_trained_tokens(row) for row in SAMPLES]
    for part, whole in zip(losses.split(lengths), alone, strict=True):
        assert part.sum().item() == pytest.approx(whole.item(), rel=1e-5)


def other_architecture(kind: str) -> torch.nn.Module:
    """A random model of a family that ignores position ids or attends across samples."""
    sizes = {"vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2}
    more = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 64, "num_attention_heads": 4}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **more.get(kind, {}))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("flatten", [False, True])
def test_isolated_samples_are_recognised(model: torch.nn.Module, flatten: bool) -> None:
    compute_loss = sft.OutputHeadLoss(model)
    assert sft.isolates_packed_samples(compute_loss, model, pack(*SAMPLES[:2]), "cpu", flatten)
    compute_loss.detach_from_model()


@pytest.mark.parametrize("kind", ["mamba", "opt"])
def test_samples_that_influence_each_other_are_recognised(kind: str) -> None:
    model = other_architecture(kind)
    compute_loss = sft.OutputHeadLoss(model)
    assert not sft.isolates_packed_samples(compute_loss, model, pack(*SAMPLES[:2]), "cpu")


def test_padding_changes_no_loss(model: torch.nn.Module) -> None:
    compute_loss = sft.OutputHeadLoss(model)
    batch = collate.collate(SAMPLES)
    losses = compute_loss(model, batch)
    compute_loss.detach_from_model()
    for index, row in enumerate(SAMPLES):
        mine = losses[batch.sequence_index == index].sum().item()
        assert mine == pytest.approx(reference_loss(model, row).item(), rel=1e-5)
    assert batch.tokens == sum(len(row.input_ids) for row in SAMPLES)


def test_a_rank_without_sequences_has_a_loss_of_zero(model: torch.nn.Module) -> None:
    compute_loss = sft.OutputHeadLoss(model)
    batch = collate.collate([])
    loss = compute_loss(model, batch).sum()
    compute_loss.detach_from_model()
    assert loss.item() == 0
    assert batch.tokens == 0
    loss.backward()


def test_detaching_restores_the_output_head(model: torch.nn.Module) -> None:
    ids = torch.from_numpy(token_array(SAMPLES[0]))[None]
    before = model(input_ids=ids).logits
    compute_loss = sft.OutputHeadLoss(model)
    compute_loss(model, collate.collate(SAMPLES))
    compute_loss.detach_from_model()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_chunks_give_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 31, generator=generator, requires_grad=True)
    labels = torch.randint(0, 31, (50,), generator=generator)
    whole = sft.cross_entropy_losses(logits, labels)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    monkeypatch.setattr(fused_cross_entropy, "CHUNK_POSITIONS", 16)
    chunked = sft.cross_entropy_losses(logits, labels)
    (found,) = torch.autograd.grad(chunked.sum(), logits)
    assert torch.equal(chunked, whole)
    assert torch.equal(found, expected)
