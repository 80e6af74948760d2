"""Values of a config that no training can use: what a call returns, and a padding token of -1."""

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


def test_a_negative_padding_token_is_none(tmp_path: Path) -> None:
    folder = set_config(tiny_model(tmp_path), pad_token_id=-1)
    model = load_base_model(folder, torch.float32)
    assert model.get_input_embeddings().padding_idx is None
    reward_model = load_base_model(folder, torch.float32, reward_head_seed=0)
    assert reward_model.config.pad_token_id == 0


def test_it_answers_too(tmp_path: Path) -> None:
    folder = set_config(tiny_model(tmp_path), **SWITCHES)
    model, tokenizer = load_base_model(folder, torch.float32), load_tokenizer(folder)
    assert len(generate_answers(model, tokenizer, [[1, 5], [1]], 2, lambda done: None)) == 2
