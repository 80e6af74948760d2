"""Adapters with random weights, as PEFT saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer import methods
from finetune_trainer.sources.model_files import ADAPTER_CONFIG


def spec_of(method: dict[str, Any], **model: Any) -> FineTuneJobSpec:
    """A job with this method; `model` are further fields of spec.model."""
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/tiny", **model},
            "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "method": method,
            "training": {"precision": "fp32", "gradientCheckpointing": False},
        }
    )


def write_adapter(
    folder: Path, model: Path, method: dict[str, Any], scale: float = 0.05, **config: Any
) -> Path:
    """Write an adapter whose weights are random, of that standard deviation; `config` are changes
    of adapter_config.json."""
    torch.manual_seed(7)
    adapted = methods.apply_method(
        methods.load_base_model(model, torch.float32), spec_of(method), total_steps=1
    )
    generator = torch.Generator().manual_seed(7)
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    weights = {
        name: each.detach() + scale * torch.randn(each.shape, generator=generator)
        for name, each in trained.items()
    }
    methods.save_trained_weights(adapted, weights, spec_of(method).method, folder)
    change_config(folder, **config)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Change adapter_config.json, in which PEFT names the folder of the base."""
    path = folder / ADAPTER_CONFIG
    config = {**json.loads(path.read_text()), "base_model_name_or_path": "acme/tiny", **changes}
    path.write_text(json.dumps(config))
