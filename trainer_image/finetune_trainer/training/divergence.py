"""Ends a run that cannot succeed: values that are not finite, and losses that diverge.

Every rank checks the same numbers, the loss summed over all ranks and the global gradient norm, so
all ranks raise the same error at the same step.
"""

import logging
import math
from collections.abc import Sequence

from finetune_trainer.runtime.errors import UserError

log = logging.getLogger("finetune")

MAX_OVERFLOWS = 16
"""Consecutive steps that fp16 may skip; so many halvings bring the scale from 65536 to 1."""
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss and in its smoothed deviation."""
MIN_RISE = 1.0
"""Nats by which the smoothed loss must exceed its best; e times the perplexity."""
MIN_DEVIATIONS = 4.0
"""Mean absolute deviations of single steps by which it must exceed its best, where that is more:
small batches and hard objectives are noisy."""
PATIENCE = 20
"""Consecutive steps for which it must."""


class DivergenceDetector:
    """Distinguishes a run that diverges from one that is noisy.

    The losses of steps are smoothed exponentially, and so is their distance from the smoothed loss,
    which measures noise. A run has diverged when the smoothed loss has exceeded its best by
    MIN_RISE and by MIN_DEVIATIONS times the noise for PATIENCE consecutive steps. Only steps below
    that threshold contribute to the noise, so that the rise itself does not count as noise.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._loss_sum = 0.0
        self._deviation_sum = 0.0
        self.best = math.inf
        self._steps_above = 0

    def add_loss(self, loss: float) -> bool:
        """Count the loss of a step; returns whether the run has diverged."""
        self._steps += 1
        # Dividing the weighted sum by the sum of the weights removes the bias towards zero.
        weight = 1 - SMOOTHING**self._steps
        previous = (
            self._loss_sum / (1 - SMOOTHING ** (self._steps - 1)) if self._steps > 1 else loss
        )
        self._loss_sum = SMOOTHING * self._loss_sum + (1 - SMOOTHING) * loss
        smoothed = self._loss_sum / weight
        margin = max(MIN_RISE, MIN_DEVIATIONS * self._deviation_sum / weight)
        if smoothed > self.best + margin:
            self._steps_above += 1
        else:
            self._steps_above = 0
            deviation = abs(loss - previous)
            self._deviation_sum += (1 - SMOOTHING) * (deviation - self._deviation_sum)
            self.best = min(self.best, smoothed)
        return self._steps_above >= PATIENCE


class LossMonitor:
    """Checks the loss and the gradient norm of every step of an attempt."""

    def __init__(self, objective: str) -> None:
        """`objective`: spec.objective. The loss of GRPO does not measure progress."""
        self._detector = None if objective == "GRPO" else DivergenceDetector()
        self._overflows = 0

    def check_step(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        is_skipped: bool,
        hosts: Sequence[str] = (),
    ) -> None:
        """Raise UserError LossNotFinite or LossDiverged if the run must end.

        `grad_norm`: before clipping; `is_skipped`: whether fp16 skipped the update of this step;
        `hosts`: those whose own part of the loss is not finite.
        """
        if not math.isfinite(loss):
            raise not_finite_error("loss", loss, step, learning_rate, hosts)
        if is_skipped:
            self._overflows += 1
            log.warning("Step skipped, its gradients overflowed in fp16", extra={"step": step})
            if self._overflows >= MAX_OVERFLOWS:
                raise overflow_error(step)
            return
        self._overflows = 0
        if not math.isfinite(grad_norm):
            raise not_finite_error("gradient norm", grad_norm, step, learning_rate)
        if self._detector and self._detector.add_loss(loss):
            raise divergence_error(step, loss, self._detector.best, learning_rate)


def not_finite_error(
    name: str, value: float, step: int, learning_rate: float, hosts: Sequence[str] = ()
) -> UserError:
    """`hosts`: those whose own part of the value is not finite, where that is known. The operator
    tries again on other nodes than a single one."""
    where = f" on host {hosts[0]}" if len(hosts) == 1 else ""
    return UserError(
        "LossNotFinite",
        f"The {name} became {value} at step {step}{where} with learning rate {learning_rate:.3g}.",
        "Lower training.learningRate or raise training.warmupRatio; with precision bf16, "
        "check that the base model was not made for fp16; with fp16, use bf16 or fp32.",
    )


def overflow_error(step: int) -> UserError:
    return UserError(
        "LossNotFinite",
        f"The gradients overflowed in fp16 for {MAX_OVERFLOWS} steps in a row, up to step {step}.",
        "Set training.precision to bf16 or fp32, or lower training.learningRate.",
    )


def divergence_error(step: int, loss: float, best: float, learning_rate: float) -> UserError:
    return UserError(
        "LossDiverged",
        f"The loss is {loss:.4g} at step {step} and has been far above its best, {best:.4g} "
        f"(both smoothed over about ten steps), for {PATIENCE} steps; the learning rate is "
        f"{learning_rate:.3g}.",
        "Lower training.learningRate, raise training.warmupRatio, or lower "
        "training.maxGradNorm; check the data for broken rows.",
    )
