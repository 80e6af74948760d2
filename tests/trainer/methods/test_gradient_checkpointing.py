"""Gradient checkpointing, NEFTune and the FLOP count, on real models."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import apply_method, load_base_model, quantization_config
from finetune_trainer.methods.gradient_checkpointing import enable_gradient_checkpointing
from finetune_trainer.methods.moe import expert_weight_names
from finetune_trainer.objectives import collate
from finetune_trainer.strategies.fsdp import convert_to_plain_parameters
from finetune_trainer.training import flops
from finetune_trainer.training.neftune import EmbeddingNoise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer import families

pytestmark = pytest.mark.filterwarnings("default")

HIDDEN, VOCABULARY = 64, 2048
HEAD = ("embed_tokens.weight", "lm_head.weight")
ALPHA = 5.0


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of results of operations that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        for tensor in found:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            size = storage.nbytes()
            self.bytes += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


def sample(length: int, seed: int = 0) -> PackedSequence:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)
    return PackedSequence(ids, ids.copy(), np.arange(length, dtype=np.int32))


def packed(*rows: PackedSequence) -> PackedSequence:
    arrays = zip(*((row.input_ids, row.labels, row.position_ids) for row in rows), strict=True)
    return PackedSequence(*(np.concatenate(parts) for parts in arrays))


def model_of(folder: Path, attention: str = "sdpa") -> Any:
    return load_base_model(folder, torch.float32, attention).train()


def gradients(model: Any, ids: torch.Tensor) -> tuple[int, int, list[torch.Tensor]]:
    """FLOPs of forward and backward, bytes held between them, and the gradients."""
    held = HeldBytes()
    with FlopCounterMode(display=False) as counter, held:
        before = held.bytes
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        between = held.bytes - before
        loss.backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return counter.get_total_flops(), between, found


def test_selective_checkpointing_repeats_no_matrix_product_and_holds_fewer_bytes(
    tiny_model_folder: Path,
) -> None:
    ids = torch.randint(3, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    seen = {}
    for kind in ("none", "full", "selective"):
        model = model_of(tiny_model_folder)
        if kind != "none":
            enable_gradient_checkpointing(model, selective=kind == "selective")
        seen[kind] = gradients(model, ids)
    operations = {kind: found[0] for kind, found in seen.items()}
    held = {kind: found[1] for kind, found in seen.items()}
    assert operations["selective"] == operations["none"] < operations["full"]
    assert held["full"] < held["selective"] < held["none"]
    for kind in ("full", "selective"):
        for mine, plain in zip(seen[kind][2], seen["none"][2], strict=True):
            torch.testing.assert_close(mine, plain, rtol=0, atol=0)


@pytest.mark.parametrize("selective", [False, True])
def test_adapters_of_the_first_block_get_gradients_with_checkpointing(
    tiny_model_folder: Path, selective: bool
) -> None:
    training = {"gradientCheckpointing": True, "selectiveCheckpointing": selective}
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://m/m"},
            "dataset": {"train": [{"uri": "pvc://d/d.jsonl"}]},
            "method": {"type": "LoRA", "lora": {"dropout": 0}},
            "training": training,
        }
    )
    found = []
    for recomputed in (True, False):
        torch.manual_seed(0)
        model = apply_method(model_of(tiny_model_folder), spec, total_steps=1)
        if not recomputed:
            model.get_base_model().gradient_checkpointing_disable()
        layers = model.get_base_model().model.layers
        assert all(layer.gradient_checkpointing is recomputed for layer in layers)
        found.append(gradients(model, torch.arange(3, 43)[None])[2])
    assert len(found[0]) == 2 * 2 * 7
    assert any(gradient.abs().sum() > 0 for gradient in found[0][:2])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)


class Embedded:
    """The input of the first block of a model."""

    def __init__(self, model: Any) -> None:
        self.model, self.noise = model, EmbeddingNoise(model, ALPHA)
        self.value = torch.empty(0)
        model.model.layers[0].register_forward_pre_hook(self._store, with_kwargs=True)

    def _store(self, layer: Any, inputs: Any, named: Any) -> None:
        self.value = (inputs[0] if inputs else named["hidden_states"]).detach().clone()

    def of(self, batch: collate.MicroBatch, noisy: bool = True) -> torch.Tensor:
        """The embeddings, or, with `noisy`, the noise that was added to them."""
        ids, positions = batch.input_ids, batch.position_ids
        self.model(input_ids=ids, position_ids=positions, use_cache=False)
        quiet = self.value
        if not noisy:
            return quiet
        with self.noise.enable(batch.sample_lengths):
            self.model(input_ids=ids, position_ids=positions, use_cache=False)
        return self.value - quiet


@pytest.fixture
def embedded(tiny_model_folder: Path) -> Iterator[Embedded]:
    seen = Embedded(model_of(tiny_model_folder))
    yield seen
    seen.noise.remove_hook()


@pytest.mark.parametrize("flatten", [False, True])
def test_noise_depends_only_on_the_length_of_the_sample(embedded: Embedded, flatten: bool) -> None:
    # Packed with another sample, padded to a longer row, and alone.
    rows = [packed(sample(30), sample(10)), sample(20)]
    noise = embedded.of(collate.collate(rows, flatten))
    parts = (
        [(noise[0, :30], 30), (noise[0, 30:40], 10), (noise[0, 40:], 20)]
        if flatten
        else [(noise[0, :30], 30), (noise[0, 30:], 10), (noise[1, :20], 20)]
    )
    for part, length in parts:
        most = ALPHA / (length * HIDDEN) ** 0.5
        assert part.abs().max() == pytest.approx(most, rel=0.02)
        assert part.abs().max() <= most * 1.0001
        assert part.std() == pytest.approx(most / 3**0.5, rel=0.1)
    if not flatten:
        assert not noise[1, 20:].any()


def test_noise_is_added_only_while_enabled_and_with_gradients(embedded: Embedded) -> None:
    batch = collate.collate([sample(12)])
    quiet = embedded.of(batch, noisy=False)
    assert torch.equal(embedded.of(batch, noisy=False), quiet)
    assert embedded.of(batch).abs().max() > 0
    with torch.no_grad():
        assert not embedded.of(batch).any()
    assert torch.equal(embedded.of(batch, noisy=False), quiet)


def test_noise_is_reproducible_from_its_seed(embedded: Embedded) -> None:
    batch = collate.collate([sample(12)])
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(embedded.of(batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_flops_of_full_training_are_those_that_pytorch_counts(tiny_model_folder: Path) -> None:
    model = model_of(tiny_model_folder, "eager")
    ids = torch.arange(3, 51)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    expected = flops.count_model_flops(model).count_step(
        tokens=48, head_positions=48, attended_pairs=48 * 48
    )
    assert expected == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_frozen_weights_cost_two_thirds_of_trained_ones(tiny_model_folder: Path) -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://m/m"},
            "dataset": {"train": [{"uri": "pvc://d/d.jsonl"}]},
            "training": {"gradientCheckpointing": False},
        }
    )
    full = flops.count_model_flops(model_of(tiny_model_folder))
    model = apply_method(model_of(tiny_model_folder, "eager"), spec, total_steps=1)
    adapters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    found = flops.count_model_flops(model)
    assert found.per_token == pytest.approx(full.per_token * 4 / 6 + 6 * adapters)
    ids = torch.arange(3, 51)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    # Gradients below the first block's adapters are not computed.
    counted = counter.get_total_flops()
    assert counted <= found.count_step(48, 48, 48 * 48) < 1.2 * counted


def test_four_bit_weights_are_counted_with_their_unpacked_shape(tmp_path: Path) -> None:
    folder = families.tiny_qwen(tmp_path / "qwen")
    method = Method.model_validate({"type": "QLoRA"})
    bits = quantization_config(method, torch.bfloat16, "FSDP")
    full = load_base_model(folder, torch.bfloat16).requires_grad_(requires_grad=False)
    packed = load_base_model(folder, torch.bfloat16, quantization=bits)
    packed.requires_grad_(requires_grad=False)
    assert flops.count_model_flops(packed) == flops.count_model_flops(full)
    convert_to_plain_parameters(packed)
    assert flops.count_model_flops(packed) == flops.count_model_flops(full)


@pytest.mark.parametrize("family", ["tiny_mixtral", "tiny_qwen_moe", "tiny_deepseek"])
def test_a_token_costs_only_the_experts_that_compute_it(family: str, tmp_path: Path) -> None:
    model = load_base_model(getattr(families, family)(tmp_path / family), torch.float32)
    sizes = {name: each.numel() for name, each in model.named_parameters() if each.dim() > 1}
    inside = sum(sizes.pop(name) for name in expert_weight_names(model))
    outside = sum(size for name, size in sizes.items() if not name.endswith(HEAD))
    # Two experts of four.
    assert flops.count_model_flops(model).per_token == 6 * (outside + inside / 2)


def test_a_batch_counts_trained_positions_and_attended_pairs() -> None:
    rows = [packed(sample(30), sample(10)), sample(20)]
    for flatten in (False, True):
        batch = collate.collate(rows, flatten)
        assert flops.count_positions(batch) == (29 + 9 + 19, 30**2 + 10**2 + 20**2)
