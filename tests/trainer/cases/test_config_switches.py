"""Switches of a config for what a call of the library returns, which no training can use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.generation.greedy import generate_answers
from finetune_trainer.methods.base_model import load_base_model

from tests.trainer.tiny import set_config, tiny_model
from tests.trainer.whole_job import single_rank, train_and_export

SWITCHES = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with single_rank(tmp_path_factory.mktemp("meeting")):
        yield


@pytest.mark.parametrize("name", list(SWITCHES))
@pytest.mark.usefixtures("alone")
def test_a_model_trains_and_exports_whatever_its_calls_return(tmp_path: Path, name: str) -> None:
    model = set_config(tiny_model(tmp_path / "models" / "tiny"), **{name: SWITCHES[name]})
    artifact = train_and_export(tmp_path, model, method="LoRA")
    written = json.loads((artifact / "config.json").read_text())
    assert written.get(name) in (None, not SWITCHES[name])


def test_it_answers_too(tmp_path: Path) -> None:
    folder = set_config(tiny_model(tmp_path), **SWITCHES)
    model, tokenizer = load_base_model(folder, torch.float32), load_tokenizer(folder)
    assert len(generate_answers(model, tokenizer, [[1, 5], [1]], 2, lambda done: None)) == 2
