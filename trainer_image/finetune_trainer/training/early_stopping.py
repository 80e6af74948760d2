"""Early stopping: look at the held-out loss now and then, and end when it no longer falls.

The held-out loss is the objective's own, in evaluation mode: no dropout, no noise. Its losses are
summed over all ranks and divided by their number, so neither the number of ranks nor padding nor
packing changes it. A look changes no weight, no gradient and no random number of training.
"""

from typing import Any

from finetune_api import finetunejob


class EarlyStopping:
    """What the looks have shown so far; a part of every checkpoint."""

    def __init__(self, settings: finetunejob.EarlyStopping) -> None:
        self._settings = settings
        self.best_step: int | None = None
        self.best_loss: float | None = None
        self._stale = 0

    def due(self, step: int, last: bool) -> bool:
        """Whether to look after this step; the last one is always looked at."""
        return last or step % self._settings.every_steps == 0

    def add(self, step: int, loss: float) -> bool:
        """Count a look, of a loss in nats; returns whether it is the best so far."""
        best = self.best_loss
        # A loss that is no number is never better.
        if loss < float("inf") and (best is None or loss < best - self._settings.min_improvement):
            self.best_step, self.best_loss, self._stale = step, loss, 0
            return True
        self._stale += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether as many looks in a row as the patience allows were no better."""
        return self._stale >= self._settings.patience

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"step": self.best_step, "loss": self.best_loss, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state` told."""
        self.best_step, self.best_loss = state["step"], state["loss"]
        self._stale = state["stale"]


def evaluate_held_out_loss(engine: Any, objective: Any, device: Any) -> float:
    """Mean of the held-out losses over all ranks, in the objective's unit. A collective."""
    import torch
    from torch import distributed as dist

    share = objective.held_out()
    total = torch.zeros(1, dtype=torch.float64, device=device)
    engine.model.eval()
    with torch.no_grad():
        for batch in share.batches:
            # Entered for its number format; without gradients nothing accumulates.
            with engine.accumulate(is_last=True):
                total += objective.losses(engine.model, batch).each.sum()
    engine.model.train()
    objective.measures()
    dist.all_reduce(total)
    return float(total) / float(share.weight)
