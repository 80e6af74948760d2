"""The tuned model is saved in the dtype of its base, also where config.json has no dtype."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer.methods import saved_dtype
from finetune_trainer.sources.model_facts import read_header
from safetensors.torch import load_file, save_file

from tests.trainer.tiny import set_config, tiny_model
from tests.trainer.whole_job import single_rank, train_and_export


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with single_rank(tmp_path_factory.mktemp("meeting")):
        yield


def stored_as(folder: Path, dtype: str, norms: str) -> Path:
    """The tiny model without a dtype in its config; norms may have another one."""
    set_config(tiny_model(folder), dtype=None)
    weights = load_file(folder / "model.safetensors")
    saved = {
        name: each.to(getattr(torch, norms if "norm" in name else dtype))
        for name, each in weights.items()
    }
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("dtype", "norms"),
    [("bfloat16", "float32"), ("float16", "float16"), ("float32", "bfloat16")],
)
def test_config_without_a_dtype_keeps_that_of_most_weights(
    tmp_path: Path, dtype: str, norms: str
) -> None:
    folder = stored_as(tmp_path, dtype, norms)
    assert saved_dtype(folder) == getattr(torch, dtype)
    set_config(folder, dtype=norms)
    assert saved_dtype(folder) == getattr(torch, norms), "config.json comes first"


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_the_artifact_has_that_dtype(tmp_path: Path, method: str) -> None:
    model = stored_as(tmp_path / "models" / "tiny", "bfloat16", "float32")
    artifact = train_and_export(tmp_path, model, method=method)
    written = read_header(artifact / "model.safetensors")
    assert {entry["dtype"] for entry in written.values()} == {"BF16"}
    assert json.loads((artifact / "config.json").read_text())["dtype"] == "bfloat16"
