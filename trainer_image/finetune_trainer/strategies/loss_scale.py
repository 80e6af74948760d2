"""Dynamic loss scaling: fp16 gradients would vanish below 6e-8 and overflow above 65504.

The loss is multiplied by a scale and the gradients are divided by it. A step whose gradients
overflowed is left out, and the scale halved; after many good steps it is doubled. Source:
Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2. PyTorch's GradScaler looks at the
gradients of its own rank; here the global norm tells, which is the same number on every rank
whatever is sharded. DeepSpeed has its own scaler with the same numbers.
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
        self.skipped = 0
        """Steps left out by this attempt."""
        self._good_steps = 0

    def unscale(self, weights: Iterable[torch.Tensor]) -> None:
        """Divide every gradient by the scale."""
        for weight in weights:
            if weight.grad is not None:
                weight.grad.div_(self.value)

    def update(self, finite: bool) -> None:
        """Count one step; `finite` tells whether its gradients were."""
        if not finite:
            self.skipped += 1
            self.value, self._good_steps = self.value / 2, 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_INTERVAL:
            self.value, self._good_steps = self.value * 2, 0

    def state(self) -> torch.Tensor:
        """What a checkpoint must keep: float64 [2]."""
        return torch.tensor([self.value, self._good_steps], dtype=torch.float64)

    def restore(self, state: torch.Tensor) -> None:
        """Go on from what `state` gave."""
        self.value, self._good_steps = float(state[0]), int(state[1])
