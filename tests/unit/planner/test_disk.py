"""What training leaves on disk, and the refusal when the workspace is too small for it."""

from typing import Any

import pytest
from finetune_api.facts import WorkspaceFacts
from finetune_operator.planner.disk import (
    artifact_bytes,
    check_free_space,
    checkpoint_bytes,
    output_bytes,
    peak_disk_bytes,
)
from finetune_operator.planner.parameters import trainable_parameters
from finetune_operator.planner.quantity import format_bytes

from tests.unit.planner.facts import LLAMA_8B, SMOL, spec

PARAMETERS = LLAMA_8B.parameters


def workspace(free: int) -> WorkspaceFacts:
    return WorkspaceFacts(free_bytes=free, write_bytes_per_second=1e8)


@pytest.mark.parametrize(
    ("fields", "bytes_per_parameter"),
    [
        ({"method": {"type": "Full"}}, 12),
        ({"method": {"type": "Full"}, "training": {"optimizer": "AdamW8bit"}}, 6),
        ({"method": {"type": "Full"}, "training": {"optimizer": "Adafactor"}}, 4),
        ({}, 12),
        ({"method": {"type": "QLoRA"}}, 12),
        ({"method": {"type": "AdaLoRA"}}, 24),
    ],
)
def test_a_checkpoint_holds_fp32_weights_and_optimizer_states_of_the_trained_parameters(
    fields: dict[str, Any], bytes_per_parameter: int
) -> None:
    job = spec(**fields)
    trained = trainable_parameters(LLAMA_8B, job.method)
    assert checkpoint_bytes(job, LLAMA_8B) == bytes_per_parameter * trained


def test_output_and_artifact_sizes_follow_the_method() -> None:
    full, lora, prefix = (spec(method={"type": name}) for name in ("Full", "LoRA", "Prefix"))
    assert output_bytes(full, LLAMA_8B) == artifact_bytes(full, LLAMA_8B) == 2 * PARAMETERS
    assert peak_disk_bytes(full, LLAMA_8B) == (3 * 12 + 2 + 2) * PARAMETERS
    assert output_bytes(lora, LLAMA_8B) < artifact_bytes(lora, LLAMA_8B) == 2 * PARAMETERS
    saved = spec(method={"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}})
    tied = LLAMA_8B.model_copy(update={"has_tied_embeddings": True})
    assert output_bytes(saved, tied) == output_bytes(lora, tied) + 2 * 4 * 128256 * 4096
    assert artifact_bytes(prefix, LLAMA_8B) == output_bytes(prefix, LLAMA_8B) < PARAMETERS


def test_early_stopping_keeps_one_more_checkpoint() -> None:
    plain = spec(method={"type": "Full"})
    stopping = spec(method={"type": "Full"}, training={"earlyStopping": {}})
    more = peak_disk_bytes(stopping, SMOL) - peak_disk_bytes(plain, SMOL)
    assert more == checkpoint_bytes(plain, SMOL)


def test_exactly_enough_free_space_is_enough_and_older_versions_measure_none() -> None:
    job = spec(method={"type": "Full"})
    need = peak_disk_bytes(job, SMOL)
    assert check_free_space(job, SMOL, workspace(need), "w") is None
    assert check_free_space(job, SMOL, workspace(need - 1), "w") is not None
    assert check_free_space(job, SMOL, None, "w") is None


def test_too_little_free_space_is_refused_with_figures_and_remedies() -> None:
    job = spec(method={"type": "Full"}, training={"checkpoint": {"keepLast": 4}})
    refusal = check_free_space(job, LLAMA_8B, workspace(400 * 1024**3), "finetune-workspace")
    assert refusal is not None
    assert (refusal.stage, refusal.reason) == ("train", "WorkspaceTooSmall")
    assert refusal.message == (
        "training writes 478.6 GiB: 5 checkpoints of 89.7 GiB, trained weights of 15.0 GiB and an "
        "artifact of 15.0 GiB; claim finetune-workspace has 400.0 GiB free"
    )
    assert refusal.remedy == (
        "enlarge claim finetune-workspace by 78.6 GiB; or delete FineTuneJobs, and release "
        "artifacts, that are no longer needed; or set training.checkpoint.keepLast to 3"
    )
    fewer = spec(method={"type": "Full"}, training={"checkpoint": {"keepLast": 3}})
    assert check_free_space(fewer, LLAMA_8B, workspace(400 * 1024**3), "w") is None


def test_fewer_checkpoints_are_not_proposed_if_they_would_not_suffice() -> None:
    refusal = check_free_space(spec(method={"type": "Full"}), LLAMA_8B, workspace(10**9), "w")
    assert refusal is not None
    assert refusal.remedy is not None
    assert "keepLast" not in refusal.remedy


def test_small_sizes_are_formatted_in_mib() -> None:
    assert format_bytes(3 * 2**30 // 2) == "1.5 GiB"
    assert format_bytes(3 * 2**20 // 2) == "1.5 MiB"
