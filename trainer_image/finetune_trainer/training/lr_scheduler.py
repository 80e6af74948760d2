"""The learning rate of a step.

It follows from the plan and the step's number alone, so a resumed run restores nothing for it.
"""

import math

from finetune_api.finetunejob import Training
from finetune_api.train_plan import TrainPlan


def learning_rate(step: int, plan: TrainPlan, settings: Training) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then the schedule.

    All schedules except for `constant` reach zero one step after the last. `wsd` (warm-up, stable,
    decay) stays at its peak and falls linearly over the last `decay_ratio` of all steps, or over
    the steps after the warm-up if these are fewer.
    """
    total, peak = plan.total_steps, plan.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step <= warmup:
        return float(peak * step / warmup)
    remaining = total - step + 1
    after_warmup = max(1, total - warmup)
    if settings.schedule == "constant":
        factor = 1.0
    elif settings.schedule == "linear":
        factor = remaining / after_warmup
    elif settings.schedule == "wsd":
        decay = min(after_warmup, math.ceil(settings.decay_ratio * total))
        factor = min(1.0, remaining / decay)
    else:
        factor = 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining / after_warmup)))
    return float(peak * factor)
