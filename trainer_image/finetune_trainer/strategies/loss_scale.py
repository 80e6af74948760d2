"""Dynamic loss scaling: fp16 gradients underflow below 6e-8 and overflow above 65504.

The loss is multiplied by a scale, and gradients are divided by it before the update. A step whose
gradients overflowed is skipped and the scale is halved; after GROWTH_INTERVAL steps without an
overflow it is doubled. Source: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2. PyTorch's
GradScaler checks the gradients of its own rank; this one checks the global norm, which is the same
number on every rank however gradients are sharded. DeepSpeed has its own scaler with the same
constants.
"""

from collections.abc import Iterable

import torch

INITIAL_POWER = 16
"""The scale starts at two to this power."""
GROWTH_INTERVAL = 1000
"""Steps without overflow after which the scale is doubled."""


class LossScale:
    """The scale of one run."""

    def __init__(self) -> None:
        self.value = 2.0**INITIAL_POWER
        self.skipped_steps = 0
        """Steps that this attempt skipped."""
        self._good_steps = 0

    def unscale(self, weights: Iterable[torch.Tensor]) -> None:
        """Divide every gradient by the scale."""
        for weight in weights:
            if weight.grad is not None:
                weight.grad.div_(self.value)

    def update(self, is_finite: bool) -> None:
        """Adjust the scale after a step; `is_finite`: whether its gradient norm was finite."""
        if not is_finite:
            self.skipped_steps += 1
            self.value, self._good_steps = self.value / 2, 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_INTERVAL:
            self.value, self._good_steps = self.value * 2, 0

    def state_tensor(self) -> torch.Tensor:
        """What a checkpoint saves: float64 [2]."""
        return torch.tensor([self.value, self._good_steps], dtype=torch.float64)

    def load_state_tensor(self, state: torch.Tensor) -> None:
        """Continue from what `state_tensor` returned."""
        self.value, self._good_steps = float(state[0]), int(state[1])
