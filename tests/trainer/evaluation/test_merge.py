"""The merged model is the adapted one, for every method and architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec, Quantization
from finetune_trainer import methods
from finetune_trainer.evaluation import merge
from finetune_trainer.methods.merged_weights import four_bit_base
from finetune_trainer.methods.quantization import four_bit_layers, quantizable_layer_names

from tests.trainer import families
from tests.trainer.tiny import tiny_model

LORA = {"rank": 4, "alpha": 16, "dropout": 0}
MODULES = ["embed_tokens", "lm_head", "input_layernorm"]
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA", "lora": LORA},
    "rsLoRA": {"type": "LoRA", "lora": {**LORA, "rankStabilized": True}},
    "QLoRA": {"type": "QLoRA", "lora": LORA},
    "QLoRA-FP4": {"type": "QLoRA", "lora": LORA, "quantization": {"format": "FP4"}},
    "DoRA": {"type": "DoRA", "lora": LORA},
    "IA3": {"type": "IA3"},
    "AdaLoRA": {"type": "AdaLoRA", "adalora": {"initialRank": 6, "targetRank": 3, "dropout": 0}},
    "Prefix": {"type": "Prefix", "prefix": {"virtualTokens": 5}},
    "Prefix-projection": {"type": "Prefix", "prefix": {"virtualTokens": 5, "projection": True}},
    "experts": {"type": "LoRA", "lora": LORA, "moe": {"experts": True}},
    "new-tokens": {"type": "LoRA", "lora": LORA},
    **{
        f"modules-{name}": {"type": name, "lora": {**LORA, "modulesToSave": MODULES}}
        for name in ("QLoRA", "DoRA")
    },
}
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": tiny_model,
    "qwen": families.tiny_qwen,
    "neox": families.tiny_neox,
    "gpt2": families.tiny_gpt2,
    "mixtral": families.tiny_mixtral,
    "qwen-moe": families.tiny_qwen_moe,
}
CASES = [
    *[("llama", method) for method in METHODS if method not in ("experts", "modules-QLoRA")],
    *[("qwen", method) for method in METHODS if method not in ("experts", "modules-DoRA")],
    ("neox", "IA3"),
    ("neox", "DoRA"),
    ("neox", "Prefix"),
    ("neox", "new-tokens"),
    *[("gpt2", method) for method in ("LoRA", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix")],
    *[("mixtral", method) for method in ("LoRA", "experts", "IA3", "QLoRA", "new-tokens")],
    ("qwen-moe", "experts"),
    ("qwen-moe", "DoRA"),
]
RATES = {"IA3": 0.2, "Prefix": 0.2}
STEPS = 8
NEW = [2048, 2050]
"""Ids of new tokens; one row between them is never used."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in MODELS.items()}


def job(method: str, **training: Any) -> FineTuneJobSpec:
    settings = {"precision": "fp32", "gradientCheckpointing": False, **training}
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "method": METHODS[method],
            "training": settings,
        }
    )


def tokens(method: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 2000, (2, 12), generator=generator)
    if method == "new-tokens":
        ids[:, 3], ids[:, 7] = NEW
    return ids


def train(model: Any, method: str) -> list[float]:
    """A few large steps, so that an error in merging shows; returns the losses."""
    from finetune_trainer.methods.adalora import AdaLoRAAllocator

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATES.get(method, 2e-2))
    allocation = AdaLoRAAllocator(model) if method == "AdaLoRA" else None
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens(method), labels=tokens(method)).loss
        loss.backward()
        optimizer.step()
        if allocation:
            allocation.update_ranks(is_updated=True)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("family", "method"), CASES)
def test_the_merged_model_computes_what_the_adapted_one_does(
    folders: dict[str, Path], tmp_path: Path, family: str, method: str
) -> None:
    torch.manual_seed(0)
    spec, folder = job(method), folders[family]
    new = NEW if method == "new-tokens" else []
    quantization = methods.quantization_config(spec.method, torch.float32, "DDP")
    base = methods.load_base_model(folder, torch.float32, quantization=quantization)
    methods.add_token_rows(base, new)
    model = methods.apply_method(base, spec, STEPS, new)
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}
    losses = train(model, method)
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        wanted = model.eval()(input_ids=tokens(method)).logits
    weights = {n: w.detach() for n, w in model.named_parameters() if w.requires_grad}
    methods.save_trained_weights(model, weights, spec.method, tmp_path / "output")

    plain = methods.load_base_model(folder, torch.float32)
    methods.add_token_rows(plain, new)
    rounded = four_bit_base(plain, spec.method.quantization or Quantization(), torch.float32)
    with torch.no_grad():
        untrained = plain.eval()(input_ids=tokens(method)).logits
    merged = merge.merge_adapter(
        plain, tmp_path / "output", torch.float32, rounded if quantization else None
    )
    with torch.no_grad():
        seen = merged.eval()(input_ids=tokens(method)).logits
    assert float((wanted - untrained).abs().max()) > 0.05
    assert float((seen - wanted).abs().max()) < 2e-4
    if not method.startswith("Prefix"):
        assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())
        merged.save_pretrained(tmp_path / "whole")
        again = methods.load_base_model(tmp_path / "whole", torch.float32)
        with torch.no_grad():
            assert torch.equal(again.eval()(input_ids=tokens(method)).logits, seen)


@pytest.mark.parametrize("family", MODELS)
def test_merging_rounds_exactly_the_layers_that_training_had_in_four_bits(
    folders: dict[str, Path], family: str
) -> None:
    config = methods.quantization_config(job("QLoRA").method, torch.bfloat16, "FSDP")
    held = methods.load_base_model(folders[family], torch.bfloat16, quantization=config)
    empty = methods.make_meta_model(
        folders[family], torch.bfloat16, held.config._attn_implementation, quantization=config
    )
    plain = methods.load_base_model(folders[family], torch.bfloat16)
    names = {name for name, _ in four_bit_layers(held)}
    assert names == quantizable_layer_names(plain)
    assert not any("head" in name or "embed" in name for name in names)
    shapes = {name: layer.weight.shape for name, layer in four_bit_layers(held)}
    assert shapes == {name: layer.weight.shape for name, layer in four_bit_layers(empty)}
    assert {layer.weight.dtype for _, layer in four_bit_layers(held)} == {torch.bfloat16}
