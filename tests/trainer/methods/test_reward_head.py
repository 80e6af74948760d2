"""The head of a reward model: its initial weights, and which models can have one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.methods import load_base_model, make_meta_model
from finetune_trainer.methods.reward_head import is_reward_model, reward_head
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import check_can_be_reward_model

from tests.trainer.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("default")


def test_the_initial_head_depends_only_on_the_seed(tiny_model_folder: Path) -> None:
    torch.manual_seed(1)
    first = load_base_model(tiny_model_folder, torch.float32, reward_head_seed=7)
    torch.manual_seed(2)
    second = load_base_model(tiny_model_folder, torch.float32, reward_head_seed=7)
    other = load_base_model(tiny_model_folder, torch.float32, reward_head_seed=8)
    assert is_reward_model(first)
    assert reward_head(first).weight.shape == (1, 64)
    assert torch.equal(reward_head(first).weight, reward_head(second).weight)
    assert not torch.equal(reward_head(first).weight, reward_head(other).weight)
    assert 0.06 < float(reward_head(first).weight.detach().std()) < 0.2


def test_a_head_in_the_snapshot_is_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_base_model(tiny_model_folder, torch.float32, reward_head_seed=7)
    model.save_pretrained(tmp_path)
    second = load_base_model(tmp_path, torch.float32, reward_head_seed=8)
    assert torch.equal(reward_head(model).weight, reward_head(second).weight)


@pytest.mark.parametrize(("pad", "expected"), [("<|endoftext|>", 0), ("<|im_end|>", 2), (None, 2)])
def test_the_padding_token_is_that_of_the_tokenizer_or_else_its_eos(
    tmp_path: Path, pad: str | None, expected: int
) -> None:
    folder = tiny_model(tmp_path / "tiny", pad_token=pad or "<|endoftext|>")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}))
    if pad is None:
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        del settings["pad_token"]
        path.write_text(json.dumps(settings))
    assert (
        load_base_model(folder, torch.float32, reward_head_seed=7).config.pad_token_id == expected
    )
    assert (
        make_meta_model(folder, torch.float32, "sdpa", is_reward_model=True).config.pad_token_id
        == expected
    )


@pytest.mark.parametrize("padding", [0, 3])
def test_padding_does_not_change_a_score(tiny_model_folder: Path, padding: int) -> None:
    model = load_base_model(tiny_model_folder, torch.float32, reward_head_seed=7).eval()
    ids = torch.arange(5, 25)[None]
    padded = torch.cat([ids, torch.full((1, padding), model.config.pad_token_id)], dim=1)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, model(padded).logits, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, None),
        ({"model_type": "olmoe", "architectures": ["OlmoeForCausalLM"]}, "NoRewardHead"),
        (
            {
                "model_type": "llama",
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {"0": "a", "1": "b", "2": "c"},
            },
            "NotARewardModel",
        ),
        (
            {
                "model_type": "llama",
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {"0": "LABEL_0"},
            },
            None,
        ),
    ],
)
def test_a_model_that_cannot_score_is_refused_before_training(
    config: dict[str, Any], reason: str | None
) -> None:
    if reason is None:
        check_can_be_reward_model(config, "the model")
        return
    with pytest.raises(UserError) as caught:
        check_can_be_reward_model(config, "the model")
    assert caught.value.failure.reason == reason
    assert caught.value.failure.remedy
