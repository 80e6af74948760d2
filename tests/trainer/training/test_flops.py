"""The count of FLOPs, against the one of PyTorch on real models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_trainer.methods import apply_method, load_base_model, quantization_config
from finetune_trainer.methods.moe import expert_weight_names
from finetune_trainer.objectives import collate
from finetune_trainer.strategies.fsdp import convert_to_plain_parameters
from finetune_trainer.training import flops
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer import families
from tests.trainer.sequences import model_of, packed, sample

pytestmark = pytest.mark.filterwarnings("default")
HEAD = ("embed_tokens.weight", "lm_head.weight")


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
