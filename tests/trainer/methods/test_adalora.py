"""AdaLoRA in runs that are shorter than its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.tiny import tiny_model
from tests.trainer.whole_job import single_rank, train_and_export


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_a_few_steps_finishes(tmp_path: Path, steps: int) -> None:
    model = tiny_model(tmp_path / "models" / "tiny")
    with single_rank(tmp_path):
        artifact = train_and_export(tmp_path, model, method="AdaLoRA", steps=steps)
    assert (artifact / "model.safetensors").is_file()
