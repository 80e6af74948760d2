"""Scores of reward models from other sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import GRPO
from finetune_trainer.rewards.reward_functions import Completion
from finetune_trainer.rewards.reward_model import (
    TOKENS_PER_BATCH,
    RewardModel,
    load_classifier,
    load_reward_model,
)
from finetune_trainer.runtime.errors import UserError
from transformers import AutoModelForSequenceClassification, LlamaConfig

from tests.trainer.data.test_tokenizer import DATED
from tests.trainer.prompts import prompt_run
from tests.trainer.tiny import CHATML, set_config, tiny_model, tiny_rows


def classifier(folder: Path, outputs: int = 1, template: str = CHATML, **more: Any) -> Path:
    """A random classifier with the tokenizer of the tiny model."""
    tiny_model(folder, template=template)
    config = LlamaConfig.from_pretrained(folder, num_labels=outputs, **more)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    # Large weights, so that every token changes the score.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", [0, None, -1])
def test_padding_and_other_sequences_change_no_score(
    tmp_path: Path, pad: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 150)
    folder = set_config(classifier(tmp_path / "model"), pad_token_id=pad)
    reward_model = RewardModel(folder, torch.device("cpu"), 512)
    completions = [
        Completion(
            [{"role": "user", "content": row["prompt"]}], row["completion"][: 7 * index], True
        )
        for index, row in enumerate(tiny_rows(8))
    ]
    together = reward_model.score(completions)
    alone = [reward_model.score([each])[0] for each in completions]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together.round(3).tolist())) == len(completions)


def test_a_long_conversation_loses_its_beginning(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model")
    short = RewardModel(folder, torch.device("cpu"), 16)
    prompt = [{"role": "user", "content": "What is it? " * 40}]
    other = [{"role": "user", "content": "Tell me. " + "What is it? " * 40}]
    answer = "A small and portable program that counts files."
    assert short.score([Completion(prompt, answer, True)]) == short.score(
        [Completion(other, answer, True)]
    )
    long = RewardModel(folder, torch.device("cpu"), 512)
    assert long.score([Completion(prompt, answer, True)]) != long.score(
        [Completion(other, answer, True)]
    )


def test_a_dated_template_prints_the_date_of_prepare(tmp_path: Path) -> None:
    run = prompt_run(tmp_path, tiny_model(tmp_path / "model"))
    paths = run.paths.model_copy(update={"reward_cache": str(tmp_path / "cache")})
    folder = classifier(tmp_path / "cache" / "classifier", template=DATED)
    facts = run.require_model().model_copy(update={"folder": folder.name})
    data = run.require_data().model_copy(update={"date": "2024-02-29"})
    run = run.model_copy(update={"data": data, "reward": facts, "paths": paths})
    grpo = GRPO.model_validate({"rewardModel": {"uri": "hf://org/classifier"}})
    reward_model = load_reward_model(run, grpo, torch.device("cpu"))
    assert reward_model is not None
    completion = Completion([{"role": "user", "content": "What is it?"}], "A program.", True)

    def score_on(date: str) -> float:
        return float(RewardModel(folder, torch.device("cpu"), 512, date).score([completion])[0])

    assert reward_model.score([completion])[0] == score_on("2024-02-29") != score_on("2025-01-01")


def test_a_model_without_a_single_trained_output_is_rejected(tmp_path: Path) -> None:
    two = classifier(tmp_path / "two", outputs=2)
    headless = tiny_model(tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "r"}}
    (headless / "config.json").write_text(json.dumps(config))
    for folder in (two, tiny_model(tmp_path / "language"), headless):
        with pytest.raises(UserError) as raised:
            load_classifier(folder, torch.device("cpu"))
        assert raised.value.failure.reason == "NotARewardModel"
