"""The formulas of GRPO against other computations: advantages, losses, logps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.objectives import fused_cross_entropy, policy_loss, rollout, token_logprobs
from finetune_trainer.objectives.policy_loss import CompletionBatch
from finetune_trainer.objectives.rollout import Rollout, SampledCompletion
from finetune_trainer.runtime.fencing import Attempt
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.prompts import decisive_model, make_prompt

pytestmark = pytest.mark.filterwarnings("default")
CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(7)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return decisive_model(tiny_model_folder)


@pytest.fixture
def compute_logps(model: Any) -> Iterator[token_logprobs.TokenLogpsHook]:
    found = token_logprobs.TokenLogpsHook(model, 0.7, CPU)
    yield found
    found.detach_from_model()


# Advantages.


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_are_those_of_the_paper(scale: bool) -> None:
    rewards = GENERATOR.normal(size=24)
    found = rollout.compute_advantages(rewards.tolist(), 6, scale)
    for start in range(0, 24, 6):
        group = rewards[start : start + 6]
        mean = sum(group) / 6
        deviation = (sum((r - mean) ** 2 for r in group) / 5) ** 0.5
        wanted = [(r - mean) / (deviation + 1e-4 if scale else 1) for r in group]
        assert found[start : start + 6] == pytest.approx(wanted)


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4), st.booleans())
def test_advantages_of_a_group_add_up_to_zero(rewards: list[float], scale: bool) -> None:
    found = rollout.compute_advantages(rewards, 4, scale)
    assert abs(found.sum()) < 1e-6 * max(1.0, np.abs(found).max())
    assert np.isfinite(found).all()


def test_equal_rewards_have_no_advantage() -> None:
    assert rollout.compute_advantages([0.3] * 8, 4, should_scale=True).tolist() == [0.0] * 8


# Losses.


def make_batch(
    advantages: list[float], lengths: list[int], has_logps: bool = True
) -> CompletionBatch:
    answers = [
        SampledCompletion(
            make_prompt(3 + index, index),
            make_prompt(length, 100 + index),
            True,
            (0.0,),
            advantage,
            np.linspace(-2, -1, length, dtype=np.float32) if has_logps else None,
            np.linspace(-1, -3, length, dtype=np.float32) if has_logps else None,
        )
        for index, (advantage, length) in enumerate(zip(advantages, lengths, strict=True))
    ]
    return policy_loss.collate_completions(answers, flatten=False)


def test_the_loss_of_a_token_is_clipped_where_clipping_raises_it() -> None:
    batch = make_batch([1.0, -1.0], [4, 4])
    old = np.linspace(-2, -1, 4)
    logps = np.tile(old + np.array([0.5, 0.1, -0.1, -0.5]), 2)
    found = policy_loss.policy_losses(torch.tensor(logps), batch, epsilon=0.2, beta=0.0)
    ratio = np.exp([0.5, 0.1, -0.1, -0.5])
    wanted = [-1.2, *-ratio[1:], *ratio[:3], 0.8]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_clipped_tokens_have_no_gradient() -> None:
    batch = make_batch([1.0], [2])
    logps = torch.tensor([-2.0 + 0.5, -1.0 + 0.1], requires_grad=True)
    policy_loss.policy_losses(logps, batch, 0.2, 0.0).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([0.0, -np.exp(0.1)], abs=1e-6)


def test_beta_adds_the_unbiased_estimate_of_the_kl_divergence() -> None:
    batch = make_batch([0.0], [3])
    logps = np.array([-1.5, -2.0, -0.5])
    reference = np.linspace(-1, -3, 3)
    found = policy_loss.policy_losses(torch.tensor(logps), batch, 0.2, beta=0.3)
    wanted = 0.3 * (np.exp(reference - logps) - (reference - logps) - 1)
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert (wanted >= 0).all()


def test_a_single_step_has_the_plain_policy_gradient() -> None:
    batch = make_batch([0.5, -2.0], [2, 1], has_logps=False)
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    losses = policy_loss.policy_losses(logps, batch, 0.2, 0.0)
    losses.sum().backward()
    assert losses.tolist() == [-0.5, -0.5, 2.0]
    assert logps.grad is not None
    assert logps.grad.tolist() == [-0.5, -0.5, 2.0]


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_losses_are_averaged_as_their_papers_say(loss: str) -> None:
    lengths = [3, 1, 5, 2]
    batch = make_batch([1.0] * 4, lengths)
    tokens = GENERATOR.normal(size=sum(lengths))
    found = (
        policy_loss.average_losses(torch.tensor(tokens), batch.micro_batch.sequence_index, 4, loss)
        .sum()
        .item()
    )
    answers = np.split(tokens, np.cumsum(lengths)[:-1])
    wanted = {
        "grpo": sum(answer.mean() for answer in answers),
        "bnpo": tokens.mean(),
        "dr_grpo": tokens.sum(),
        "dapo": tokens.sum(),
    }
    assert found == pytest.approx(wanted[loss])


# Logps.


@pytest.mark.parametrize("flatten", [False, True])
def test_logps_are_those_of_the_sampling_distribution(
    model: Any,
    compute_logps: token_logprobs.TokenLogpsHook,
    flatten: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_cross_entropy, "CHUNK_POSITIONS", 4)
    answers = [
        SampledCompletion(make_prompt(6, 1), make_prompt(4, 2), True, (0.0,)),
        SampledCompletion(make_prompt(3, 3), make_prompt(7, 4), True, (0.0,)),
    ]
    found = compute_logps(model, policy_loss.collate_completions(answers, flatten).micro_batch)
    wanted, entropies = [], []
    for each in answers:
        ids = torch.from_numpy(
            np.concatenate([each.prompt_ids, each.completion_ids]).astype(np.int64)
        )
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, len(each.prompt_ids) - 1 : -1] / 0.7
        logs = torch.log_softmax(logits, -1)
        wanted += logs.gather(1, ids[len(each.prompt_ids) :, None])[:, 0].tolist()
        entropies += torch.distributions.Categorical(logits=logits).entropy().tolist()
    assert found.logps.tolist() == pytest.approx(wanted, abs=1e-4)
    assert found.entropies.tolist() == pytest.approx(entropies, abs=1e-4)
    assert not found.entropies.requires_grad


def test_a_rank_without_completions_has_an_empty_loss_with_gradients(
    model: Any, compute_logps: token_logprobs.TokenLogpsHook
) -> None:
    batch = policy_loss.collate_completions([], flatten=False)
    found = compute_logps(model, batch.micro_batch)
    for loss in ("grpo", "bnpo", "dr_grpo", "dapo"):
        each = policy_loss.average_losses(
            policy_loss.policy_losses(found.logps, batch, 0.2, 0.1),
            batch.micro_batch.sequence_index,
            0,
            loss,
        )
        assert each.sum().item() == 0
        each.sum().backward(retain_graph=True)


# Stored rollouts.


def test_a_stored_rollout_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    answers = [
        SampledCompletion(
            make_prompt(3, 1),
            make_prompt(2, 2),
            True,
            (0.1, 1.0),
            0.3,
            np.float32([-1, -2]),
            None,
        ),
        SampledCompletion(
            make_prompt(5, 3),
            make_prompt(1, 4),
            False,
            (1 / 3, 0.0),
            -0.1,
            np.float32([-1 / 3]),
            None,
        ),
    ]
    attempt = Attempt(tmp_path, 2)
    attempt.claim()
    rollout.save_rollout(Rollout(7, answers, {"reward": 1 / 7}), attempt, updates=3)
    found = rollout.load_rollout(tmp_path, 3, 7)
    assert found is not None
    assert rollout.load_rollout(tmp_path, 1, 7) is None
    assert (found.step, found.metrics) == (7, {"reward": 1 / 7})
    for one, other in zip(found.completions, answers, strict=True):
        assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
        assert one.completion_ids.tolist() == other.completion_ids.tolist()
        assert (one.has_ended, one.rewards, one.advantage) == (
            other.has_ended,
            other.rewards,
            other.advantage,
        )
        assert other.old_logps is not None
        assert one.old_logps is not None
        assert one.old_logps.tobytes() == other.old_logps.tobytes()
        assert one.reference_logps is None


def test_only_rollouts_that_a_checkpoint_may_need_are_kept(tmp_path: Path) -> None:
    answers = [SampledCompletion(make_prompt(3, 1), make_prompt(2, 2), True, (0.1,))]
    (tmp_path / "checkpoints" / "1" / "step-00000005").mkdir(parents=True)
    attempt = Attempt(tmp_path, 1)
    attempt.claim()
    for step in (1, 4, 7, 10, 13):
        rollout.save_rollout(Rollout(step, answers, {}), attempt, updates=3)
    kept = sorted(path.name for path in (tmp_path / "rollouts" / "1").iterdir())
    assert kept == [f"step-{step:08d}.npz" for step in (4, 10, 13)]
