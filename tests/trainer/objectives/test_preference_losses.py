"""Losses of preferences against the same formulas in numpy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_api import finetunejob
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.objectives.dpo import MIN_LABEL_SMOOTHING, dpo_losses
from finetune_trainer.objectives.kto import (
    estimate_reference_point,
    kto_losses,
    mismatch_completion,
    sum_metrics,
)
from finetune_trainer.objectives.orpo import orpo_losses
from finetune_trainer.objectives.preference_pairs import sum_pair_metrics
from finetune_trainer.objectives.reward import reward_losses, sum_score_metrics
from finetune_trainer.objectives.sequence_logprobs import average_logps
from finetune_trainer.objectives.simpo import simpo_losses

Array = np.ndarray
GENERATOR = np.random.default_rng(7)
LOGPS = -GENERATOR.gamma(3.0, 8.0, (6, 2))
REFERENCE = LOGPS + GENERATOR.normal(0, 6, (6, 2))
TOKEN_COUNTS = GENERATOR.integers(3, 40, (6, 2)).astype(float)


def s(x: Array) -> Array:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(loss: str, b: float, e: float) -> Array:
    """Every loss of DPO, written with probabilities and not with log-sigmoids."""
    c, r = (LOGPS - REFERENCE).T
    d = c - r
    per = (LOGPS - REFERENCE) / TOKEN_COUNTS
    eps = e if e else MIN_LABEL_SMOOTHING
    kl = s(b * d) * np.log(s(b * d) / (1 - eps)) + s(-b * d) * np.log(s(-b * d) / eps)
    formulas = {
        "sigmoid": -(1 - e) * np.log(s(b * d)) - e * np.log(1 - s(b * d)),
        "hinge": np.maximum(0, 1 - b * d),
        "ipo": (per[:, 0] - per[:, 1] - 0.5 / b) ** 2,
        "robust": (-(1 - e) * np.log(s(b * d)) + e * np.log(1 - s(b * d))) / (1 - 2 * e),
        "exo_pair": kl,
        "nca_pair": -np.log(s(b * c)) - 0.5 * np.log(s(-b * c)) - 0.5 * np.log(s(-b * r)),
        "sppo_hard": (c - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
        "apo_zero": 1 - s(b * c) + s(b * r),
        "apo_down": s(b * c) + 1 - s(b * d),
    }
    return np.asarray(formulas[loss])


def tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


PLAIN = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero")
CASES = [(loss, 0.0) for loss in (*PLAIN, "apo_down")]
CASES += [("sigmoid", 0.2), ("robust", 0.2), ("exo_pair", 0.2)]


def test_every_loss_of_the_api_is_compared() -> None:
    wanted = finetunejob.DPO.model_fields["loss"].annotation
    assert {loss for loss, _ in CASES} == set(wanted.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize(("loss", "smoothing"), CASES)
def test_dpo_is_the_formula(loss: str, smoothing: float) -> None:
    settings = finetunejob.DPO.model_validate(
        {"loss": loss, "beta": 0.3, "labelSmoothing": smoothing}
    )
    found = dpo_losses(settings, *tensors(LOGPS, REFERENCE, TOKEN_COUNTS))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), by_hand(loss, 0.3, smoothing), rtol=1e-10)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_likelihood_of_the_chosen_answer_is_added_per_token(weight: float) -> None:
    # Pang et al. 2024, equation 1.
    settings = finetunejob.DPO.model_validate({"beta": 0.3, "nllWeight": weight})
    logps, reference, tokens = tensors(LOGPS, REFERENCE, TOKEN_COUNTS)
    found = dpo_losses(settings, logps.requires_grad_(), reference, tokens)
    expected = by_hand("sigmoid", 0.3, 0.0) - weight * LOGPS[:, 0] / TOKEN_COUNTS[:, 0]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)
    found.sum().backward()
    assert logps.grad is not None
    sigma = 1 - s(0.3 * ((LOGPS - REFERENCE)[:, 0] - (LOGPS - REFERENCE)[:, 1]))
    of_chosen = -0.3 * sigma - weight / TOKEN_COUNTS[:, 0]
    np.testing.assert_allclose(logps.grad[:, 0].numpy(), of_chosen, rtol=1e-10)
    np.testing.assert_allclose(logps.grad[:, 1].numpy(), 0.3 * sigma, rtol=1e-10)


AT_REFERENCE = {
    "sigmoid": np.log(2),
    "hinge": 1.0,
    "ipo": (0.5 / 0.3) ** 2,
    "robust": np.log(2),
    "nca_pair": 2 * np.log(2),
    "sppo_hard": 2 * (0.5 / 0.3) ** 2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
}


@pytest.mark.parametrize("loss", AT_REFERENCE)
def test_the_untrained_model_has_the_known_loss(loss: str) -> None:
    settings = finetunejob.DPO.model_validate({"loss": loss, "beta": 0.3})
    found = dpo_losses(settings, *tensors(LOGPS, LOGPS, TOKEN_COUNTS))
    np.testing.assert_allclose(found.numpy(), AT_REFERENCE[loss], rtol=1e-12)


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES[:9] if loss != "sppo_hard"])
def test_a_gradient_step_widens_the_margin(loss: str) -> None:
    settings = finetunejob.DPO.model_validate({"loss": loss, "beta": 0.3})
    logps, reference, tokens = tensors(REFERENCE.copy(), REFERENCE, TOKEN_COUNTS)
    logps.requires_grad_()
    dpo_losses(settings, logps, reference, tokens).sum().backward()
    assert logps.grad is not None
    assert bool((logps.grad[:, 0] < logps.grad[:, 1]).all())


def test_kto_is_the_formula() -> None:
    settings = finetunejob.KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    desirable = np.array([True, False, True, True, False, False])
    kl = 2.5
    found = kto_losses(
        settings,
        *tensors(LOGPS[:, 0], REFERENCE[:, 0], desirable),
        torch.tensor(kl, dtype=torch.float64),
    )
    ratio = LOGPS[:, 0] - REFERENCE[:, 0]
    wanted = [
        1.5 * (1 - s(0.3 * (q - kl))) if good else 0.5 * (1 - s(0.3 * (kl - q)))
        for q, good in zip(ratio, desirable, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_the_kl_estimate_is_a_constant_and_never_negative() -> None:
    ratio = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    assert float(estimate_reference_point(ratio)) == 0.0
    moved = estimate_reference_point(ratio + 4)
    assert float(moved) == 2.5
    assert not moved.requires_grad


def test_orpo_is_the_formula() -> None:
    settings = finetunejob.ORPO(beta=0.3)
    means = average_logps(*tensors(LOGPS, TOKEN_COUNTS))
    found = orpo_losses(settings, means)
    p = np.exp(LOGPS / TOKEN_COUNTS)
    odds = p / (1 - p)
    ratio = odds[:, 0] / odds[:, 1]
    wanted = -np.log(p[:, 0]) - 0.3 * np.log(s(np.log(ratio)))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_orpo_stays_finite_for_a_model_that_is_certain() -> None:
    means = torch.zeros(1, 2, requires_grad=True)
    loss = orpo_losses(finetunejob.ORPO(), means).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert means.grad is not None
    assert bool(torch.isfinite(means.grad).all())


@pytest.mark.parametrize("gamma", [0.0, 1.2])
def test_simpo_is_the_formula(gamma: float) -> None:
    # Meng et al. 2024, equations 4 to 6.
    settings = finetunejob.SimPO(beta=2.5, gamma=gamma)
    logps, tokens = tensors(LOGPS, TOKEN_COUNTS)
    found = simpo_losses(settings, average_logps(logps.requires_grad_(), tokens))
    rewards = 2.5 * LOGPS / TOKEN_COUNTS
    is_preferred = s(rewards[:, 0] - rewards[:, 1] - gamma)
    np.testing.assert_allclose(found.detach().numpy(), -np.log(is_preferred), rtol=1e-10)
    found.sum().backward()
    assert logps.grad is not None
    gradient = 2.5 * (1 - is_preferred)[:, None] / TOKEN_COUNTS * [-1, 1]
    np.testing.assert_allclose(logps.grad.numpy(), gradient, rtol=1e-10)


def test_simpo_of_equally_likely_answers_depends_on_the_margin_alone() -> None:
    # By the defaults the loss is log(1 + e^0.5), whatever the length of the answers.
    settings, tokens = finetunejob.SimPO(), torch.tensor([[4.0, 40.0]])
    found = simpo_losses(settings, average_logps(-0.75 * tokens, tokens))
    np.testing.assert_allclose(found.numpy(), [np.log1p(np.exp(0.5))], rtol=1e-6)


def test_reward_is_the_formula() -> None:
    scores = GENERATOR.normal(0, 2, (6, 2))
    found = reward_losses(finetunejob.Reward(centering=0.25), torch.from_numpy(scores))
    c, r = scores.T
    np.testing.assert_allclose(found.numpy(), -np.log(s(c - r)) + 0.25 * (c + r) ** 2, rtol=1e-10)


def test_metrics_are_sums_over_pairs() -> None:
    rewards = np.array([[1.0, 0.5], [-1.0, 2.0], [0.25, 0.25]])
    found = sum_pair_metrics(*tensors(rewards, LOGPS[:3]))
    wanted = [0.25, 2.75, 1.0, -2.5, LOGPS[:3, 0].sum(), LOGPS[:3, 1].sum()]
    np.testing.assert_allclose(found.numpy(), wanted)
    scored = sum_score_metrics(torch.from_numpy(rewards))
    np.testing.assert_allclose(scored.numpy(), [1.0, -2.5, 1.5])


def test_metrics_of_single_completions_are_means_of_each_kind() -> None:
    rewards, logps = np.array([1.0, 3.0, -2.0, 4.0]), np.array([-1.0, -2.0, -3.0, -4.0])
    desirable = np.array([True, True, False, True])
    kl = torch.tensor(0.5, dtype=torch.float64)
    sums = sum_metrics(*tensors(rewards, logps, desirable), kl, (4 / 3, 4.0))
    np.testing.assert_allclose((sums / 4).numpy(), [8 / 3, -2.0, 14 / 3, -7 / 3, -3.0, 0.5])


def make_sequence(prompt: int, completion: int, first: int) -> PackedSequence:
    ids = np.arange(first, first + prompt + completion, dtype=np.int32)
    labels = np.where(np.arange(len(ids)) < prompt, -100, ids).astype(np.int32)
    return PackedSequence(ids, labels, np.arange(len(ids), dtype=np.int32))


@pytest.mark.parametrize(("longest", "length"), [(100, 7), (6, 6), (3, 3)])
def test_a_mismatched_completion_follows_the_prompt(longest: int, length: int) -> None:
    mixed = mismatch_completion(make_sequence(3, 9, 10), make_sequence(5, 4, 50), longest)
    assert mixed.input_ids.tolist() == [10, 11, 12, 55, 56, 57, 58][:length]
    assert mixed.labels.tolist() == [-100, -100, -100, 55, 56, 57, 58][:length]
    assert mixed.position_ids.tolist() == list(range(length))
