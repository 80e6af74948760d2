"""Sequences of random tokens, and a model in training mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.methods import load_base_model

VOCABULARY = 2048


def sample(length: int, seed: int = 0) -> PackedSequence:
    """One sample of random tokens, all of which are labels."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)
    return PackedSequence(ids, ids.copy(), np.arange(length, dtype=np.int32))


def packed(*rows: PackedSequence) -> PackedSequence:
    """Several samples in one sequence."""
    arrays = zip(*((row.input_ids, row.labels, row.position_ids) for row in rows), strict=True)
    return PackedSequence(*(np.concatenate(parts) for parts in arrays))


def model_of(folder: Path, attention: str = "sdpa") -> Any:
    """The model of a folder in fp32."""
    return load_base_model(folder, torch.float32, attention).train()
