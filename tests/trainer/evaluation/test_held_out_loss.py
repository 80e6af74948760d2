"""The held-out loss and accuracy of pairs, from the log-probabilities of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data.token_store import TokenizedSample, TokenStore
from finetune_trainer.evaluation.held_out_loss import HeldOutSet, ModelOutputs, open_held_out

# Two pairs, chosen first. The first has the likelier rejected answer, but the chosen one is longer
# and has the likelier tokens.
LOGPS, TOKENS = np.array([-8.0, -6.0, -2.0, -9.0]), np.array([8, 2, 4, 6])
OUTPUTS = ModelOutputs(LOGPS, TOKENS)


def open_pairs(folder: Path, objective: str, **settings: Any) -> HeldOutSet:
    """The held-out set of two pairs."""
    samples = [TokenizedSample([1] * int(count), [1] * int(count)) for count in TOKENS]
    TokenStore.write(folder / "eval", samples, [[index] for index in range(len(samples))])
    spec = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
        "objective": objective,
        **settings,
    }
    held_out = open_held_out(FineTuneJobSpec.model_validate(spec), folder / "eval")
    assert held_out is not None
    return held_out


@pytest.mark.parametrize(("objective", "accuracy"), [("DPO", 0.5), ("ORPO", 1.0), ("SimPO", 1.0)])
def test_simpo_and_orpo_prefer_by_the_likelihood_per_token(
    tmp_path: Path, objective: str, accuracy: float
) -> None:
    preferences = open_pairs(tmp_path, objective).measure_preferences(OUTPUTS)
    assert preferences is not None
    assert preferences.compute(np.ones((1, 2))) == accuracy


@pytest.mark.parametrize("base", [0.0, -100.0])
def test_the_held_out_loss_of_simpo_has_no_reference(tmp_path: Path, base: float) -> None:
    held_out = open_pairs(tmp_path, "SimPO", simpo={"beta": 2.5, "gamma": 1.0})
    found = held_out.compute_losses(OUTPUTS, ModelOutputs(np.full(4, base), TOKENS))
    rewards = 2.5 * np.array([[-8 / 8, -6 / 2], [-2 / 4, -9 / 6]])
    margins = rewards[:, 0] - rewards[:, 1] - 1.0
    np.testing.assert_allclose(found.losses, np.log(1 + np.exp(-margins)), rtol=1e-12)
    assert found.weights.tolist() == [1, 1]
