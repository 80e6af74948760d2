"""Whether a run is still worth its devices: numbers that are none, and losses that run away.

Every rank judges the same numbers, the loss summed over all ranks and the global gradient norm, so
all of them raise the same error at the same step.
"""

import logging
import math

from finetune_trainer.runtime.errors import UserError

log = logging.getLogger("finetune")

MAX_OVERFLOWS = 16
"""Steps in a row that fp16 may leave out: as many halvings bring the scale from 65536 to 1."""
SMOOTHING = 0.9
"""Weight of the past in smoothed losses and their spread."""
MIN_RISE = 1.0
"""Nats that the smoothed loss must stand above its best; exp(1) times the perplexity."""
MIN_DEVIATIONS = 4.0
"""Mean absolute deviations of single steps that it must stand above its best, where that is
more: small batches and hard objectives are noisy."""
PATIENCE = 20
"""Steps in a row for which it must."""


class DivergenceDetector:
    """Tells a run that diverges from one that is noisy.

    The losses of steps are smoothed exponentially, and so is their distance from the smoothed
    loss, which measures noise. A run has diverged when the smoothed loss has stood above its best
    by LEAST_RISE and by SPREADS times the noise for PATIENCE steps in a row. The noise is taken
    before the rise: while the loss stands high it does not learn from it.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._sum = 0.0
        self._spread_sum = 0.0
        self.best = math.inf
        self._above = 0

    def add(self, loss: float) -> bool:
        """Count the loss of a step; returns whether the run has diverged."""
        self._steps += 1
        # A sum of weighted losses over the sum of their weights has no bias towards zero.
        total = 1 - SMOOTHING**self._steps
        before = self._sum / (1 - SMOOTHING ** (self._steps - 1)) if self._steps > 1 else loss
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        smoothed = self._sum / total
        if smoothed > self.best + self._margin(total):
            self._above += 1
        else:
            self._above = 0
            self._spread_sum += (1 - SMOOTHING) * (abs(loss - before) - self._spread_sum)
            self.best = min(self.best, smoothed)
        return self._above >= PATIENCE

    def _margin(self, total: float) -> float:
        return max(MIN_RISE, MIN_DEVIATIONS * self._spread_sum / total)


class LossMonitor:
    """Judges every step of an attempt."""

    def __init__(self, loss_must_fall: bool) -> None:
        """`loss_must_fall`: not so with GRPO, whose loss says nothing about progress."""
        self._divergence = DivergenceDetector() if loss_must_fall else None
        self._overflows = 0

    def check(self, step: int, loss: float, norm: float, rate: float, skipped: bool) -> None:
        """Raise UserError LossNotFinite or LossDiverged when it is time to stop.

        `norm` is the gradients' before clipping; `skipped` tells that fp16 left the step out.
        """
        if not math.isfinite(loss):
            raise not_finite_error("loss", loss, step, rate)
        if skipped:
            self._overflows += 1
            log.warning("step %d was left out: its gradients overflowed in fp16", step)
            if self._overflows >= MAX_OVERFLOWS:
                raise overflow_error(step)
            return
        self._overflows = 0
        if not math.isfinite(norm):
            raise not_finite_error("gradient norm", norm, step, rate)
        if self._divergence and self._divergence.add(loss):
            raise divergence_error(step, loss, self._divergence.best, rate)


def not_finite_error(what: str, value: float, step: int, rate: float) -> UserError:
    """The error for a number that is none."""
    return UserError(
        "LossNotFinite",
        f"The {what} became {value} at step {step} with learning rate {rate:.3g}.",
        "Lower training.learningRate or raise training.warmupRatio; with precision bf16, "
        "check that the base model was not made for fp16; with fp16, use bf16 or fp32.",
    )


def overflow_error(step: int) -> UserError:
    """The error for a run whose every step overflows."""
    return UserError(
        "LossNotFinite",
        f"The gradients overflowed in fp16 for {MAX_OVERFLOWS} steps in a row, up to step {step}.",
        "Set training.precision to bf16 or fp32, or lower training.learningRate.",
    )


def divergence_error(step: int, loss: float, best: float, rate: float) -> UserError:
    """The error for a loss that has run away."""
    return UserError(
        "LossDiverged",
        f"The loss is {loss:.4g} at step {step} and has stood far above its best, {best:.4g} "
        f"(both smoothed over about ten steps), for {PATIENCE} steps; the learning rate is "
        f"{rate:.3g}.",
        "Lower training.learningRate, raise training.warmupRatio, or lower "
        "training.maxGradNorm; look for broken rows in the data.",
    )
