"""The trained weights are compared with the list that training wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.checkpointing.checkpoint_folder import hash_files
from finetune_trainer.evaluation.merge import verify_output
from finetune_trainer.runtime import name_cache
from finetune_trainer.runtime.errors import RetryableError

from tests.trainer.volumes import stale_listings


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text(name)
    (folder / "files.json").write_text(json.dumps({"files": hash_files(folder)}))
    return folder


def test_weights_are_found_by_their_names_where_the_listing_is_old(output: Path) -> None:
    with stale_listings({output: []}):
        verify_output(output)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("other")])
def test_a_file_that_is_missing_or_different_is_named(
    output: Path, change: Callable[[Path], object]
) -> None:
    change(output / "adapter_model.safetensors")
    with pytest.raises(RetryableError, match=r"adapter_model\.safetensors") as raised:
        verify_output(output)
    assert raised.value.failure.reason == "TrainedWeightsChanged"


def test_a_file_that_training_did_not_write_is_named(output: Path) -> None:
    """transformers would load model.safetensors in place of the shards that an index names."""
    (output / "model.safetensors").write_text("other")
    with pytest.raises(RetryableError, match=r"model\.safetensors") as raised:
        verify_output(output)
    assert raised.value.failure.reason == "TrainedWeightsChanged"


def test_weights_that_training_did_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_cache, "CACHED_SECONDS", 0.0)
    with pytest.raises(RetryableError) as raised:
        verify_output(tmp_path)
    assert raised.value.failure.reason == "NoTrainedWeights"
