"""Objectives that compare probabilities train without dropout; SFT keeps it.

The models have dropout in attention, residuals and embeddings, which their architectures read from
modules, from attributes or from the config.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import families, pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import Runs, losses, make_run, to_json, write_data
from tests.trainer.preferences import preference_run, write_preferences
from tests.trainer.prompts import prompt_run, write_prompts
from tests.trainer.strategies.test_strategies import dropout_model
from tests.trainer.tiny import VOCABULARY

ARCHITECTURES = ("llama", "gpt2", "falcon", "opt")
METHODS = ("LoRA", "Full")
EVERY = list(itertools.product(ARCHITECTURES, METHODS))
GRPO: dict[str, Any] = {
    "updates": 2,
    "beta": 0.1,
    "loss": "grpo",
    "rewards": [{"type": "regex", "pattern": each} for each in ("a", "k", "st", "in", "per", "x")],
}
"""The second update uses the same completions, so the first one compares with stored logps."""


def model_of(root: Path, architecture: str) -> Path:
    if architecture == "llama":
        return dropout_model(root)
    make = {
        "gpt2": families.tiny_gpt2,
        "falcon": families.tiny_falcon,
        "opt": families.tiny_opt,
    }[architecture]
    return make(root / "models" / architecture)


def settings(method: str, **more: Any) -> dict[str, Any]:
    lora = {"lora": {"dropout": 0.1}} if method == "LoRA" else {}
    return {"method": method, "world_size": 1, "steps": 1, **lora, **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("dropout")
    models = {name: model_of(root, name) for name in ARCHITECTURES}
    cases = []
    for architecture, method in EVERY:
        for objective in ("DPO", "KTO"):
            name = f"{objective}-{architecture}-{method}"
            write_preferences(root / name / "job" / "data", models[architecture], objective)
            run = preference_run(root / name, models[architecture], objective, **settings(method))
            cases.append({"name": name, "run": to_json(run)})
        name = f"GRPO-{architecture}-{method}"
        write_prompts(root / name / "job" / "data", models[architecture])
        how = settings(method, steps=2)
        grpo = GRPO if method == "LoRA" else {**GRPO, "beta": 0}
        run = prompt_run(root / name, models[architecture], grpo, **how)
        cases.append({"name": name, "run": to_json(run)})
    for weight in (0.0, 0.5):
        name, model = f"NLL-{weight}", models["gpt2"]
        write_preferences(root / name / "job" / "data", model, "DPO")
        nll = {"nllWeight": weight}
        run = preference_run(root / name, model, "DPO", nll, **settings("LoRA"))
        cases.append({"name": name, "run": to_json(run)})
    for name, dropout in (("SFT-with", 0.5), ("SFT-without", 0.0)):
        write_data(root / name / "job" / "data", models["gpt2"])
        run = make_run(root / name, models["gpt2"], **settings("LoRA", lora={"dropout": dropout}))
        cases.append({"name": name, "run": to_json(run)})
    (root / "cases.json").write_text(json.dumps(cases))
    pool.run(drive, root / "cases.json", world=1, folder=root / "logs")
    return Runs(root)


@pytest.mark.parametrize(("architecture", "method"), EVERY)
def test_the_first_loss_of_dpo_is_exactly_ln_2(runs: Runs, architecture: str, method: str) -> None:
    found = losses(runs.job(f"DPO-{architecture}-{method}"))
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_with_a_likelihood_term_adds_that_of_the_chosen_answer(runs: Runs) -> None:
    plain, added = (losses(runs.job(f"NLL-{weight}"))[0] for weight in (0.0, 0.5))
    assert plain == pytest.approx(math.log(2), abs=1e-6)
    # The model is random, so a token has about the likelihood of one in its vocabulary.
    assert added - plain == pytest.approx(0.5 * math.log(VOCABULARY), rel=0.05)


@pytest.mark.parametrize(("architecture", "method"), EVERY)
def test_the_first_rewards_and_the_first_kl_of_kto_are_zero(
    runs: Runs, architecture: str, method: str
) -> None:
    first = runs.history(f"KTO-{architecture}-{method}")[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    for name in ("kl", "rewards/chosen", "rewards/rejected"):
        assert first[name] == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize(("architecture", "method"), EVERY)
def test_the_first_ratio_of_grpo_is_one(runs: Runs, architecture: str, method: str) -> None:
    first = runs.history(f"GRPO-{architecture}-{method}")[0]
    assert first["frac_reward_zero_std"] < 1
    # With ratio 1 the loss is the mean advantage, which is 0 in every group.
    assert first["loss"] == pytest.approx(0, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-9)


def test_sft_keeps_the_dropout_that_the_user_set(runs: Runs) -> None:
    # B of an untrained adapter is zero, so its dropout shows in gradients, the model's in losses.
    norms = [runs.history(name)[0]["grad_norm"] for name in ("SFT-with", "SFT-without")]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_the_model_is_saved_with_the_dropout_of_its_config(runs: Runs) -> None:
    saved = json.loads((runs.job("DPO-gpt2-Full") / "output" / "config.json").read_text())
    assert (saved["attn_pdrop"], saved["resid_pdrop"], saved["embd_pdrop"]) == (0.1, 0.1, 0.1)
