"""A rollout: the sampled completions that some optimizer steps learn from, with their advantages.

If several steps learn from the same completions, a run that was stopped between them cannot sample
them again, because the policy has changed since. So rollouts are stored in the job's folder until
their last step.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.token_store import IGNORED, PackedSequence
from finetune_trainer.runtime.fencing import Attempt

Floats: TypeAlias = NDArray[np.float32]
STD_EPSILON = 1e-4
"""Added to a group's standard deviation, so that equal rewards give no advantage."""


@dataclass(frozen=True)
class SampledCompletion:
    """A completion of a prompt, with p prompt tokens and c completion tokens."""

    prompt_ids: NDArray[np.int32]
    """int32 [p]."""
    completion_ids: NDArray[np.int32]
    """int32 [c], with the token that ended it."""
    has_ended: bool
    """Whether the policy ended it; false if it was cut at the longest length allowed."""
    rewards: tuple[float, ...]
    """One for each reward function."""
    advantage: float = 0.0
    old_logps: Floats | None = None
    """fp32 [c]: under the policy that sampled the completion; None if a single step learns from it,
    because the policy of that step is the same."""
    reference_logps: Floats | None = None
    """fp32 [c]: under the base model; None if the loss has no KL term."""

    @property
    def tokens(self) -> int:
        """p + c."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def sequence(self) -> PackedSequence:
        """Prompt and completion as a training sequence, [p + c], labelled on the completion."""
        ids = np.concatenate([self.prompt_ids, self.completion_ids])
        labels = np.concatenate([np.full_like(self.prompt_ids, IGNORED), self.completion_ids])
        return PackedSequence(ids, labels, np.arange(len(ids), dtype=np.int32))


@dataclass(frozen=True)
class Rollout:
    """The completions of all ranks that were sampled at one step."""

    step: int
    """The first step that learns from it."""
    completions: list[SampledCompletion]
    """Longest first."""
    metrics: dict[str, float]


def compute_advantages(
    rewards: Sequence[float], generations: int, should_scale: bool
) -> NDArray[np.float64]:
    """Reward of each completion minus the mean of its group, float64 [completions] (Shao et al.
    2024, arXiv 2402.03300, section 4.1.2); with `should_scale` divided by the group's standard
    deviation.

    A group is `generations` consecutive completions; the deviation is the unbiased one, as in TRL.
    """
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, generations)
    centred = groups - groups.mean(1, keepdims=True)
    if should_scale:
        centred = centred / (groups.std(1, ddof=1, keepdims=True) + STD_EPSILON)
    return np.asarray(centred.reshape(-1))


def compute_metrics(
    completions: Sequence[SampledCompletion],
    total_rewards: Sequence[float],
    names: Sequence[str],
    generations: int,
) -> dict[str, float]:
    """TRL's metrics of sampled completions, by its names; groups are consecutive completions."""
    groups = np.asarray(total_rewards).reshape(-1, generations)
    deviations = groups.std(1, ddof=1)
    columns = np.asarray([each.rewards for each in completions]).T
    return {
        "reward": float(groups.mean()),
        "reward_std": float(deviations.mean()),
        "frac_reward_zero_std": float((deviations < 1e-9).mean()),
        "completions/mean_length": float(np.mean([len(c.completion_ids) for c in completions])),
        "completions/clipped_ratio": float(np.mean([not c.has_ended for c in completions])),
        **{f"rewards/{name}/mean": float(c.mean()) for name, c in zip(names, columns, strict=True)},
    }


def rollout_path(job: Path, attempt: int, step: int) -> Path:
    return job / "rollouts" / str(attempt) / f"step-{step:08d}.npz"


def save_rollout(rollout: Rollout, attempt: Attempt, updates: int) -> None:
    """Store a rollout, and remove those of this attempt that no checkpoint resumes within."""
    job, number = attempt.job, attempt.number
    path = rollout_path(job, number, rollout.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **_to_arrays(rollout))
    attempt.publish_file(path, buffer.getvalue())
    saved = [int(each.name[5:13]) for each in (job / "checkpoints").glob("*/step-????????")]
    needed = {rollout_path(job, number, step - step % updates + 1) for step in saved}
    # The last two stay: a checkpoint within the rollout before this one may still be in progress.
    for other in sorted(path.parent.glob("step-*.npz"))[:-2]:
        if other not in needed:
            other.unlink()


def load_rollout(job: Path, attempt: int, step: int) -> Rollout | None:
    """The rollout whose first step is `step`, as this or the latest earlier attempt stored it."""
    for number in range(attempt, 0, -1):
        path = rollout_path(job, number, step)
        if path.is_file():
            with np.load(path) as arrays:
                return _from_arrays(step, arrays)
    return None


def _to_arrays(rollout: Rollout) -> dict[str, NDArray[Any]]:
    completions = rollout.completions
    columns: dict[str, NDArray[Any]] = {
        "prompt_lengths": np.asarray([len(each.prompt_ids) for each in completions]),
        "answer_lengths": np.asarray([len(each.completion_ids) for each in completions]),
        "prompts": np.concatenate([each.prompt_ids for each in completions]),
        "answers": np.concatenate([each.completion_ids for each in completions]),
        "ended": np.asarray([each.has_ended for each in completions]),
        "rewards": np.asarray([each.rewards for each in completions], dtype=np.float64),
        "advantages": np.asarray([each.advantage for each in completions], dtype=np.float64),
        "measures": np.asarray(json.dumps(rollout.metrics)),
    }
    logps = {
        "old": [each.old_logps for each in completions],
        "reference": [each.reference_logps for each in completions],
    }
    for name, parts in logps.items():
        present = [part for part in parts if part is not None]
        if len(present) == len(parts):
            columns[name] = np.concatenate(present)
    return columns


def _from_arrays(step: int, arrays: Mapping[str, NDArray[Any]]) -> Rollout:
    count = len(arrays["ended"])
    borders = {
        side: np.cumsum(arrays[f"{side}_lengths"])[:-1].tolist() for side in ("prompt", "answer")
    }

    def split(name: str, side: str) -> list[Any]:
        return np.split(arrays[name], borders[side]) if name in arrays else [None] * count

    columns = (
        split("prompts", "prompt"),
        split("answers", "answer"),
        arrays["ended"].tolist(),
        [tuple(each) for each in arrays["rewards"].tolist()],
        arrays["advantages"].tolist(),
        split("old", "answer"),
        split("reference", "answer"),
    )
    completions = [SampledCompletion(*each) for each in zip(*columns, strict=True)]
    return Rollout(step, completions, json.loads(str(arrays["measures"])))
