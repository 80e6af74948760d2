"""Objectives that compare probabilities train without dropout; SFT keeps it.

The models have dropout in attention, residuals and embeddings, which their architectures read from
modules, from attributes or from the config.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import methods

from tests.trainer import families, pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import Runs, losses, make_run, to_json
from tests.trainer.preferences import preference_run, write_preferences
from tests.trainer.prompts import prompt_run, write_prompts
from tests.trainer.strategies.test_strategies import dropout_model
from tests.trainer.tiny import VOCABULARY

ARCHITECTURES = {
    "llama": lambda root: dropout_model(root.parent),
    "gpt2": families.tiny_gpt2,
    "falcon": families.tiny_falcon,
    "opt": families.tiny_opt,
}
GRPO: dict[str, Any] = {
    "updates": 2,
    "beta": 0.1,
    "loss": "grpo",
    "rewards": [{"type": "regex", "pattern": each} for each in ("a", "k", "st", "in", "per", "x")],
}
"""The second update uses the same completions, so the first one compares with stored logps."""
DROPOUT = {"method": "LoRA", "lora": {"dropout": 0.1}}


def make_model(root: Path, architecture: str, objective: str, method: str) -> Any:
    """A model as training makes it, whose adapters are not zero."""
    folder = ARCHITECTURES[architecture](root / "models")
    run = make_run(root, folder, **{**DROPOUT, "method": method})
    spec = run.spec.model_copy(update={"objective": objective})
    base = methods.load_base_model(folder, torch.float32, "sdpa")
    model = methods.apply_method(base, spec, total_steps=1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model


def compute_twice(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(5, 37)[None]  # [1, 32]
    return [model(input_ids=ids).logits.detach() for _ in range(2)]


@pytest.mark.parametrize("method", ["LoRA", "Full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_dropout_training_computes_what_evaluation_does(
    tmp_path: Path, architecture: str, method: str
) -> None:
    model = make_model(tmp_path, architecture, "DPO", method)
    assert model.training
    first, second = compute_twice(model)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, compute_twice(model.eval())[0])


@pytest.mark.parametrize("objective", ["KTO", "ORPO", "Reward", "GRPO", "SFT", "Completion"])
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_only_objectives_of_plain_likelihood_keep_dropout(
    tmp_path: Path, method: str, objective: str
) -> None:
    first, second = compute_twice(make_model(tmp_path, "gpt2", objective, method))
    assert torch.equal(first, second) is (objective not in ("SFT", "Completion"))


def test_sft_keeps_the_dropout_of_adapters(tmp_path: Path) -> None:
    model = make_model(tmp_path, "gpt2", "SFT", "LoRA")
    rates = {
        each.p for name, each in model.named_modules() if name.endswith("lora_dropout.default")
    }
    assert rates == {0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("dropout")
    model = families.tiny_gpt2(root / "models" / "gpt2")
    how: dict[str, Any] = {**DROPOUT, "world_size": 1, "steps": 1}
    cases = []

    def add(name: str, objective: str, settings: dict[str, Any] | None, **more: Any) -> None:
        write_preferences(root / name / "job" / "data", model, objective)
        run = preference_run(root / name, model, objective, settings, **{**how, **more})
        cases.append({"name": name, "run": to_json(run)})

    add("DPO-LoRA", "DPO", None)
    add("DPO-Full", "DPO", None, method="Full")
    add("DPO-NLL", "DPO", {"nllWeight": 0.5})
    add("KTO", "KTO", None)
    write_prompts(root / "GRPO" / "job" / "data", model)
    run = prompt_run(root / "GRPO", model, GRPO, **{**how, "steps": 2})
    cases.append({"name": "GRPO", "run": to_json(run)})
    (root / "cases.json").write_text(json.dumps(cases))
    pool.run(drive, root / "cases.json", world=1, folder=root / "logs")
    return Runs(root)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_the_first_loss_of_dpo_is_exactly_ln_2(runs: Runs, method: str) -> None:
    assert losses(runs.job(f"DPO-{method}"))[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_with_a_likelihood_term_adds_that_of_the_chosen_answer(runs: Runs) -> None:
    # The model is random, so a token has about the likelihood of one in its vocabulary.
    added = losses(runs.job("DPO-NLL"))[0] - math.log(2)
    assert added == pytest.approx(0.5 * math.log(VOCABULARY), rel=0.05)


def test_the_first_rewards_and_the_first_kl_of_kto_are_zero(runs: Runs) -> None:
    first = runs.history("KTO")[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    for name in ("kl", "rewards/chosen", "rewards/rejected"):
        assert first[name] == pytest.approx(0, abs=2e-5)


def test_the_first_ratio_of_grpo_is_one(runs: Runs) -> None:
    first = runs.history("GRPO")[0]
    assert first["frac_reward_zero_std"] < 1
    # With ratio 1 the loss is the mean advantage, which is 0 in every group.
    assert first["loss"] == pytest.approx(0, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-9)


def test_the_model_is_saved_with_the_dropout_of_its_config(runs: Runs) -> None:
    saved = json.loads((runs.job("DPO-Full") / "output" / "config.json").read_text())
    assert (saved["attn_pdrop"], saved["resid_pdrop"], saved["embd_pdrop"]) == (0.1, 0.1, 0.1)
