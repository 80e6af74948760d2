"""Gradient checkpointing: what is recomputed, what is held, and that gradients stay equal."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.methods import apply_method
from finetune_trainer.methods.gradient_checkpointing import enable_gradient_checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.sequences import VOCABULARY, model_of

pytestmark = pytest.mark.filterwarnings("default")


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
