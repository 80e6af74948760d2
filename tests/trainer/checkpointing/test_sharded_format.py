"""Shards of tensors: written once and of equal size, and missing elements are an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.checkpointing import sharded_format
from finetune_trainer.strategies.base import Fragment


def test_replicated_tensors_are_written_once_in_shards_of_equal_size() -> None:
    sizes = {"weight": 64, "exp_avg": 64, "exp_avg_sq": 64, "step": 1}
    state = {
        f"{what}/{name}": Fragment(torch.zeros(size))
        for name in "abcd"
        for what, size in sizes.items()
    }
    shards = [sharded_format.own_shard(state, rank, 3) for rank in range(3)]
    assert sorted(name for shard in shards for name in shard) == sorted(f"{n}@0" for n in state)
    sizes_by_rank = [sum(values.numel() for values in shard.values()) for shard in shards]
    assert max(sizes_by_rank) - min(sizes_by_rank) <= 4


def test_missing_elements_are_an_error(tmp_path: Path) -> None:
    names = [sharded_format.write_shard(tmp_path, 0, {"weight/a@0": torch.arange(4.0)}).name]
    held = {"weight/a": Fragment(torch.zeros(3), start=1)}
    sharded_format.read_shards(tmp_path, [*names, "parts.pt"], held)
    assert held["weight/a"].values.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="3 of 4 elements"):
        sharded_format.read_shards(tmp_path, names, {"weight/a": Fragment(torch.zeros(4), start=1)})
