"""The answers that some optimizer steps learn from, and how good each is within its group.

Where several steps use the same answers, a run that was stopped between them cannot sample them
again, because the policy has moved on. So they are kept in the job's folder until their last step.
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
SMALLEST_DEVIATION = 1e-4
"""Added to a group's standard deviation, so that equal rewards give no advantage."""


@dataclass(frozen=True)
class Sampled:
    """An answer to a prompt."""

    prompt: NDArray[np.int32]
    answer: NDArray[np.int32]
    """With the token that ended it."""
    ended: bool
    rewards: tuple[float, ...]
    """One for each reward."""
    advantage: float = 0.0
    old: Floats | None = None
    """log p of the answer's tokens under the policy that sampled them; absent where a single step
    uses the answer, which then is that policy."""
    reference: Floats | None = None
    """log p of the answer's tokens under the base model; absent where it is not asked for."""

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    def row(self) -> PackedSequence:
        """As one training sequence in which the answer is learnt."""
        ids = np.concatenate([self.prompt, self.answer])
        labels = np.concatenate([np.full_like(self.prompt, IGNORED), self.answer])
        return PackedSequence(ids, labels, np.arange(len(ids), dtype=np.int32))


@dataclass(frozen=True)
class Rollout:
    """Everything that was sampled at one step."""

    step: int
    """The first step that learns from it."""
    answers: list[Sampled]
    """Longest first."""
    measures: dict[str, float]


def advantages(rewards: Sequence[float], generations: int, scale: bool) -> NDArray[np.float64]:
    """How much better each answer is than the mean of its group (Shao et al. 2024, arXiv
    2402.03300, section 4.1.2), divided by the group's standard deviation where `scale`.

    Groups are `generations` answers in a row; the deviation is the unbiased one, as in TRL.
    """
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, generations)
    centred = groups - groups.mean(1, keepdims=True)
    if scale:
        centred = centred / (groups.std(1, ddof=1, keepdims=True) + SMALLEST_DEVIATION)
    return np.asarray(centred.reshape(-1))


def measures_of(
    answers: Sequence[Sampled], totals: Sequence[float], names: Sequence[str], generations: int
) -> dict[str, float]:
    """What TRL tells of sampled answers, by its names; answers of a group stand in a row."""
    groups = np.asarray(totals).reshape(-1, generations)
    deviations = groups.std(1, ddof=1)
    columns = np.asarray([answer.rewards for answer in answers]).T
    return {
        "reward": float(groups.mean()),
        "reward_std": float(deviations.mean()),
        "frac_reward_zero_std": float((deviations < 1e-9).mean()),
        "completions/mean_length": float(np.mean([len(each.answer) for each in answers])),
        "completions/clipped_ratio": float(np.mean([not each.ended for each in answers])),
        **{f"rewards/{name}/mean": float(c.mean()) for name, c in zip(names, columns, strict=True)},
    }


def path_of(job: Path, attempt: int, step: int) -> Path:
    """Where an attempt keeps a rollout."""
    return job / "rollouts" / str(attempt) / f"step-{step:08d}.npz"


def save(rollout: Rollout, attempt: Attempt, updates: int) -> None:
    """Keep a rollout, and drop those of this attempt that nothing resumes within any more."""
    job, number = attempt.job, attempt.number
    path = path_of(job, number, rollout.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays(rollout))
    attempt.publish_file(path, buffer.getvalue())
    saved = [int(each.name[5:13]) for each in (job / "checkpoints").glob("*/step-????????")]
    needed = {path_of(job, number, step - step % updates + 1) for step in saved}
    # A checkpoint within the rollout before this one may be on its way.
    for other in sorted(path.parent.glob("step-*.npz"))[:-2]:
        if other not in needed:
            other.unlink()


def find(job: Path, attempt: int, step: int) -> Rollout | None:
    """The rollout that begins with `step`, as this or the newest earlier attempt kept it."""
    for number in range(attempt, 0, -1):
        path = path_of(job, number, step)
        if path.is_file():
            with np.load(path) as arrays:
                return _rollout(step, arrays)
    return None


def _arrays(rollout: Rollout) -> dict[str, NDArray[Any]]:
    answers = rollout.answers
    columns: dict[str, NDArray[Any]] = {
        "prompt_lengths": np.asarray([len(each.prompt) for each in answers]),
        "answer_lengths": np.asarray([len(each.answer) for each in answers]),
        "prompts": np.concatenate([each.prompt for each in answers]),
        "answers": np.concatenate([each.answer for each in answers]),
        "ended": np.asarray([each.ended for each in answers]),
        "rewards": np.asarray([each.rewards for each in answers], dtype=np.float64),
        "advantages": np.asarray([each.advantage for each in answers], dtype=np.float64),
        "measures": np.asarray(json.dumps(rollout.measures)),
    }
    for name in ("old", "reference"):
        parts = [getattr(each, name) for each in answers]
        if all(part is not None for part in parts):
            columns[name] = np.concatenate(parts)
    return columns


def _rollout(step: int, arrays: Mapping[str, NDArray[Any]]) -> Rollout:
    count = len(arrays["ended"])
    borders = {
        side: np.cumsum(arrays[f"{side}_lengths"])[:-1].tolist() for side in ("prompt", "answer")
    }

    def parts(name: str, side: str) -> list[Any]:
        return np.split(arrays[name], borders[side]) if name in arrays else [None] * count

    columns = (
        parts("prompts", "prompt"),
        parts("answers", "answer"),
        arrays["ended"].tolist(),
        [tuple(each) for each in arrays["rewards"].tolist()],
        arrays["advantages"].tolist(),
        parts("old", "answer"),
        parts("reference", "answer"),
    )
    answers = [Sampled(*each) for each in zip(*columns, strict=True)]
    return Rollout(step, answers, json.loads(str(arrays["measures"])))
