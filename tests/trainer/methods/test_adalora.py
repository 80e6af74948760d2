"""AdaLoRA in runs that are shorter than its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_api.finetunejob import Method
from finetune_trainer.methods import load_base_model
from finetune_trainer.methods.adalora import AdaLoRAAllocator
from finetune_trainer.methods.adapters import add_adapters


@pytest.mark.parametrize("final_ratio", [0.2, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_a_few_steps_keeps_all_ranks_or_the_target_rank(
    tiny_model_folder: Path, steps: int, final_ratio: float
) -> None:
    base = load_base_model(tiny_model_folder, torch.float32)
    settings = {"warmupRatio": 0.1, "finalRatio": final_ratio}
    method = Method.model_validate({"type": "AdaLoRA", "adalora": settings})
    model = add_adapters(base, method, steps)
    allocator = AdaLoRAAllocator(model)
    ids = torch.arange(5, 25)[None]
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        allocator.update_ranks(is_updated=True)
        model.zero_grad()
    config = model.peft_config["default"]
    ranks = [sum(kept) for kept in (config.rank_pattern or {}).values()]
    if steps == 1:
        assert not ranks, "no earlier step has measured importances"
    else:
        assert ranks
        assert sum(ranks) == config.target_r * len(ranks)
