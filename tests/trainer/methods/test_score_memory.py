"""Attention that stores its scores takes no more memory for them than the planner counts."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_operator.planner.activations import (
    SCORE_BYTES,
    count_stored_scores,
    score_gradient_bytes,
)
from finetune_operator.planner.memory_inputs import collect_memory_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.trainer.architectures import write_model
from tests.unit.planner.facts import DATA, LLAMA_8B, spec

LENGTHS = (64, 128, 192)


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that still exist, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def measure(model: Any, length: int) -> tuple[int, int]:
    """Bytes kept by the forward pass, and at most during the backward pass."""
    with PeakMemory() as memory:
        ids = torch.zeros(1, length, dtype=torch.long)
        logits = model(input_ids=ids, use_cache=False).logits  # [1, length, vocabulary]
        kept = memory.now
        logits.float().sum().backward()
    return kept, memory.peak


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["gemma2", "granite_swa"])
def test_scores_take_what_the_planner_counts(tmp_path: Path, kind: str, precision: str) -> None:
    """Gemma 2 caps its scores, and Granite has attention sinks."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    folder = write_model(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    sizes = [measure(model.train(), length) for length in LENGTHS]
    # What grows with the square of the length, as the second difference.
    kept, peak = (
        (first - 2 * second + third) / 2 / (LENGTHS[1] - LENGTHS[0]) ** 2
        for first, second, third in zip(*sizes, strict=True)
    )
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    names = {"architecture": type(model).__name__, "attention_heads": heads}
    facts = LLAMA_8B.model_copy(update=names)
    inputs = collect_memory_inputs(spec(training={"precision": precision}), DATA, None, "cpu")
    scores = count_stored_scores(facts, inputs, 1)
    assert scores == heads * inputs.sequence_length
    assert kept == pytest.approx(layers * heads * SCORE_BYTES, rel=0.01)
    assert peak - kept <= 1.01 * heads * score_gradient_bytes(facts, inputs, 1) / scores
