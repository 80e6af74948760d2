"""The loss: packed, padded or alone, an example costs the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import load_model
from finetune_trainer.objectives import collate, fused_cross_entropy, sft
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.jobs import array_of

pytestmark = pytest.mark.filterwarnings("default")


def example(length: int, prompt: int, seed: int) -> PackedSequence:
    dice = np.random.default_rng(seed)
    ids = dice.integers(3, 2048, length).astype(np.int32)
    labels = ids.copy()
    labels[:prompt] = -100
    return PackedSequence(ids, labels, np.arange(length, dtype=np.int32))


def packed(*rows: PackedSequence) -> PackedSequence:
    return PackedSequence(
        np.concatenate([row.input_ids for row in rows]),
        np.concatenate([row.labels for row in rows]),
        np.concatenate([row.position_ids for row in rows]),
    )


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = load_model(tiny_model_folder, torch.float32)
    return loaded.eval()


def reference_loss(model: torch.nn.Module, row: PackedSequence) -> torch.Tensor:
    """An example alone, by the textbook."""
    ids = torch.from_numpy(array_of(row))[None]
    labels = torch.from_numpy(row.labels.astype(np.int64))
    logits = model(input_ids=ids).logits[0, :-1]
    return functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")


EXAMPLES = [example(17, 5, 1), example(9, 1, 2), example(30, 12, 3), example(12, 0, 4)]


@pytest.mark.parametrize("flatten", [False, True])
def test_packed_examples_do_not_see_each_other(model: torch.nn.Module, flatten: bool) -> None:
    rows = [packed(*EXAMPLES[:2]), packed(*EXAMPLES[2:])]
    loss_of = sft.AnswerLoss(model)
    losses = loss_of(model, collate.collate(rows, flatten))
    loss_of.remove()
    alone = [reference_loss(model, row) for row in EXAMPLES]
    assert len(losses) == sum(map(collate.trained_tokens, rows))
    assert losses.sum().item() == pytest.approx(sum(alone).item(), rel=1e-6)
    lengths = [collate.trained_tokens(row) for row in EXAMPLES]
    for part, whole in zip(losses.split(lengths), alone, strict=True):
        assert part.sum().item() == pytest.approx(whole.item(), rel=1e-5)


def other_architecture(kind: str) -> torch.nn.Module:
    """A random model of a family that treats packed rows in its own way."""
    sizes = {"vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2}
    more = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 64, "num_attention_heads": 4}}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **more.get(kind, {}))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("flatten", [False, True])
def test_packed_examples_are_found_to_be_apart(model: torch.nn.Module, flatten: bool) -> None:
    loss_of = sft.AnswerLoss(model)
    assert sft.keeps_apart(loss_of, model, packed(*EXAMPLES[:2]), "cpu", flatten)
    loss_of.remove()


@pytest.mark.parametrize("kind", ["mamba", "opt"])
def test_models_whose_packed_examples_see_each_other_are_found(kind: str) -> None:
    model = other_architecture(kind)
    loss_of = sft.AnswerLoss(model)
    assert not sft.keeps_apart(loss_of, model, packed(*EXAMPLES[:2]), "cpu")


def test_padding_changes_nothing(model: torch.nn.Module) -> None:
    loss_of = sft.AnswerLoss(model)
    batch = collate.collate(EXAMPLES)
    losses = loss_of(model, batch)
    loss_of.remove()
    for index, row in enumerate(EXAMPLES):
        mine = losses[batch.owners == index].sum().item()
        assert mine == pytest.approx(reference_loss(model, row).item(), rel=1e-5)
    assert batch.tokens == sum(len(row.input_ids) for row in EXAMPLES)


def test_a_rank_without_rows_adds_nothing(model: torch.nn.Module) -> None:
    loss_of = sft.AnswerLoss(model)
    batch = collate.collate([])
    loss = loss_of(model, batch).sum()
    loss_of.remove()
    assert loss.item() == 0
    assert batch.tokens == 0
    loss.backward()


def test_the_head_is_as_before_when_the_loss_is_removed(model: torch.nn.Module) -> None:
    ids = torch.from_numpy(array_of(EXAMPLES[0]))[None]
    before = model(input_ids=ids).logits
    loss_of = sft.AnswerLoss(model)
    loss_of(model, collate.collate(EXAMPLES))
    loss_of.remove()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_chunks_give_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 31, generator=generator, requires_grad=True)
    targets = torch.randint(0, 31, (50,), generator=generator)
    whole = sft.token_losses(logits, targets)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    monkeypatch.setattr(fused_cross_entropy, "CHUNK", 16)
    chunked = sft.token_losses(logits, targets)
    (found,) = torch.autograd.grad(chunked.sum(), logits)
    assert torch.equal(chunked, whole)
    assert torch.equal(found, expected)
