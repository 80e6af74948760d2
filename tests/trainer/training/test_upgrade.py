"""The trainer uses what the previous release wrote to the workspace of the same run."""

from __future__ import annotations

from pathlib import Path

from finetune_api.run_config import RunConfig
from finetune_trainer.objectives import reference_logprobs
from finetune_trainer.training import worker

RELEASE_0_1 = Path(__file__).parents[2] / "unit" / "api" / "data" / "run-0.1.0.json"


def test_checkpoints_and_reference_logprobs_of_the_previous_release_are_used() -> None:
    run = RunConfig.model_validate_json(RELEASE_0_1.read_text())
    # Both values were computed by release 0.1.0.
    assert worker.checkpoint_fingerprint(run) == {
        "strategy": "ZeRO2",
        "batch_size": 16,
        "total_steps": 30,
        "learning_rate": 0.0001,
        "model": None,
        "data": "sha256:" + "ab" * 32,
        "method": {"lora": {"dropout": 0.0, "rank": 8}, "type": "LoRA"},
    }
    assert reference_logprobs.reference_folder(run) == Path(
        "/workspace/job/reference/2d0a3fd0b11eac1f"
    )
