"""What training leaves on disk, and a workspace that is too small for it."""

from typing import Any

import pytest
from finetune_api.run import WorkspaceFacts
from finetune_operator.planner.disk import (
    artifact_bytes,
    checkpoint_bytes,
    output_bytes,
    room_for_training,
    training_bytes,
)
from finetune_operator.planner.parameters import trained_parameters
from finetune_operator.planner.quantity import size_text

from tests.unit.planner.facts import LLAMA_8B, SMOL, spec

PARAMETERS = LLAMA_8B.parameters


def workspace(free: int) -> WorkspaceFacts:
    return WorkspaceFacts(free_bytes=free, write_bytes_per_second=1e8)


@pytest.mark.parametrize(
    ("fields", "each"),
    [
        ({"method": {"type": "Full"}}, 12),
        ({"method": {"type": "Full"}, "training": {"optimizer": "AdamW8bit"}}, 6),
        ({"method": {"type": "Full"}, "training": {"optimizer": "Adafactor"}}, 4),
        ({}, 12),
        ({"method": {"type": "QLoRA"}}, 12),
        ({"method": {"type": "AdaLoRA"}}, 24),
    ],
)
def test_a_checkpoint_holds_fp32_weights_and_states_of_what_is_trained(
    fields: dict[str, Any], each: int
) -> None:
    job = spec(**fields)
    trained = trained_parameters(LLAMA_8B, job.method)
    assert checkpoint_bytes(job, LLAMA_8B) == each * trained


def test_sizes_of_a_full_run_and_of_adapters() -> None:
    full, lora, prefix = (spec(method={"type": name}) for name in ("Full", "LoRA", "Prefix"))
    assert output_bytes(full, LLAMA_8B) == artifact_bytes(full, LLAMA_8B) == 2 * PARAMETERS
    assert training_bytes(full, LLAMA_8B) == (3 * 12 + 2 + 2) * PARAMETERS
    assert output_bytes(lora, LLAMA_8B) < artifact_bytes(lora, LLAMA_8B) == 2 * PARAMETERS
    assert artifact_bytes(prefix, LLAMA_8B) == output_bytes(prefix, LLAMA_8B) < PARAMETERS


def test_early_stopping_keeps_one_more() -> None:
    plain = spec(method={"type": "Full"})
    stopping = spec(method={"type": "Full"}, training={"earlyStopping": {}})
    more = training_bytes(stopping, SMOL) - training_bytes(plain, SMOL)
    assert more == checkpoint_bytes(plain, SMOL)


def test_just_enough_room_is_enough_and_none_is_measured_by_older_versions() -> None:
    job = spec(method={"type": "Full"})
    need = training_bytes(job, SMOL)
    assert room_for_training(job, SMOL, workspace(need), "w") is None
    assert room_for_training(job, SMOL, workspace(need - 1), "w") is not None
    assert room_for_training(job, SMOL, None, "w") is None


def test_too_little_room_is_told_with_figures_and_what_helps() -> None:
    job = spec(method={"type": "Full"}, training={"checkpoint": {"keepLast": 4}})
    refusal = room_for_training(job, LLAMA_8B, workspace(400 * 1024**3), "finetune-workspace")
    assert refusal is not None
    assert (refusal.stage, refusal.reason) == ("train", "WorkspaceTooSmall")
    assert refusal.message == (
        "training writes 478.6 GiB: 5 checkpoints of 89.7 GiB, trained weights of 15.0 GiB and an "
        "artifact of 15.0 GiB; claim finetune-workspace has 400.0 GiB free"
    )
    assert refusal.remedy == (
        "enlarge claim finetune-workspace by 78.6 GiB; or delete FineTuneJobs whose artifacts "
        "nobody needs; or set training.checkpoint.keepLast to 3"
    )
    fewer = spec(method={"type": "Full"}, training={"checkpoint": {"keepLast": 3}})
    assert room_for_training(fewer, LLAMA_8B, workspace(400 * 1024**3), "w") is None


def test_fewer_checkpoints_are_not_proposed_where_that_would_not_do() -> None:
    refusal = room_for_training(spec(method={"type": "Full"}), LLAMA_8B, workspace(10**9), "w")
    assert refusal is not None
    assert refusal.remedy is not None
    assert "keepLast" not in refusal.remedy


def test_small_sizes_are_told_in_smaller_units() -> None:
    assert size_text(3 * 2**30 // 2) == "1.5 GiB"
    assert size_text(3 * 2**20 // 2) == "1.5 MiB"
