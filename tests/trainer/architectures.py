"""Tiny random models of any architecture, and what transformers computes for them in eager mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer import methods
from finetune_trainer.data.token_store import PackedSequence
from torch.nn import functional

from hack.measure_packing import DROPPED, tiny_config

WINDOW = 8
"""Tokens of a sliding window or chunk, fewer than those of the samples."""
CAP = 1.5
"""Of attention scores and logits, so small that it shows."""
LENGTHS = (13, 20)
"""Tokens of the two samples."""
SPEC = FineTuneJobSpec.model_validate(
    {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
        "method": {"type": "Full"},
        "training": {"precision": "fp32", "gradientCheckpointing": True},
    }
)


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A model of this model_type with small windows, caps that show, and no dropout.

    Raises what transformers raises where no sizes of DROPPED fit the architecture.
    """
    from transformers import AutoModelForCausalLM

    failed: Exception | None = None
    for dropped in DROPPED:
        try:
            config = tiny_config(kind, dropped)
            text = config.get_text_config()
            for name, value in {**_shown_features(text), **changes}.items():
                setattr(text, name, value)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for weight in model.parameters():
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, std=0.2)
            model.generation_config = type(model.generation_config)()
            model.save_pretrained(folder)
            compute_eager(folder, samples()[:1])
        except Exception as error:
            failed = failed or error
        else:
            return folder
    assert failed is not None
    raise failed


def _shown_features(text: Any) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for name, value in text.to_dict().items():
        if name.endswith("logit_softcapping") and value is not None:
            features[name] = CAP
        elif name in ("sliding_window", "attention_chunk_size") and value is not None:
            features[name] = WINDOW
        elif ("drop" in name or "jitter" in name) and isinstance(value, float):
            features[name] = 0.0
    return features


def samples() -> list[np.ndarray]:
    """Token ids, int64 [length]."""
    generator = np.random.default_rng(0)
    return [generator.integers(5, 100, length) for length in LENGTHS]


def as_sequences(is_packed: bool) -> list[PackedSequence]:
    """The samples in one sequence, or each in its own; every token has a label."""
    ids, positions = samples(), [np.arange(length) for length in LENGTHS]
    if is_packed:
        ids, positions = [np.concatenate(ids)], [np.concatenate(positions)]
    return [PackedSequence(each, each, places) for each, places in zip(ids, positions, strict=True)]


@dataclass(frozen=True)
class Computed:
    """What a model computes of the samples."""

    logits: torch.Tensor
    """[tokens, vocabulary], of all samples one after the other."""
    losses: torch.Tensor
    """Of every token after the first of each sample."""
    gradients: dict[str, torch.Tensor]
    """Of the mean loss, by the name of the weight."""


def compute_eager(folder: Path, token_ids: Sequence[np.ndarray] | None = None) -> Computed:
    """Each sample alone, by transformers in eager mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).train()
    losses, logits = [], []
    for ids in samples() if token_ids is None else token_ids:
        tensor = torch.from_numpy(ids)
        logits.append(model(input_ids=tensor[None], use_cache=False).logits[0])
        losses.append(functional.cross_entropy(logits[-1][:-1], tensor[1:], reduction="none"))
    every = torch.cat(losses)
    every.mean().backward()
    return Computed(torch.cat(logits).detach(), every.detach(), _gradients(model))


def load_for_training(folder: Path) -> Any:
    """The model as the train stage loads it on a CPU, with gradient checkpointing."""
    kernel = methods.attention_kernel("cpu", torch.float32)
    return methods.apply_method(methods.load_base_model(folder, torch.float32, kernel), SPEC, 1)


def compute_as_in_training(folder: Path, is_packed: bool) -> Computed:
    """The samples in one micro-batch of SFT."""
    from finetune_trainer.objectives.collate import collate
    from finetune_trainer.objectives.sft import OutputHeadLoss

    model, micro_batch = load_for_training(folder), collate(as_sequences(is_packed))
    loss = OutputHeadLoss(model)
    losses = loss(model, micro_batch)
    losses.mean().backward()
    loss.detach_from_model()
    with torch.no_grad():
        logits = model(
            input_ids=micro_batch.input_ids, position_ids=micro_batch.position_ids, use_cache=False
        ).logits
    is_token = micro_batch.sample_lengths > 0
    return Computed(logits[is_token], losses.detach(), _gradients(model))


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
