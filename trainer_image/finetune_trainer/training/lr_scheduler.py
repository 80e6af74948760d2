"""Which rows and which learning rate a step has.

Both follow from the plan, the seed and the step's number alone. So the same global batches
arise at any world size, and a resumed run needs to know nothing but its step.
"""

import math

from finetune_api.finetunejob import Training
from finetune_api.run import TrainPlan


def learning_rate(step: int, plan: TrainPlan, settings: Training) -> float:
    """The rate of a step, counted from 1: linear warm-up, then the schedule's course.

    All but `constant` reach zero one step after the last. `wsd` stays at its peak and falls
    linearly over the last `decay_ratio` of all steps, or over what the warm-up leaves of them.
    """
    total, peak = plan.total_steps, plan.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step <= warmup:
        return float(peak * step / warmup)
    left = total - step + 1
    after = max(1, total - warmup)
    if settings.schedule == "constant":
        course = 1.0
    elif settings.schedule == "linear":
        course = left / after
    elif settings.schedule == "wsd":
        course = min(1.0, left / min(after, math.ceil(settings.decay_ratio * total)))
    else:
        course = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left / after)))
    return float(peak * course)
