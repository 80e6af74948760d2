"""Early stopping: evaluate the held-out loss every few steps and end when it stops falling.

The held-out loss is the objective's own, in eval mode: without dropout and noise. It is summed over
all ranks and divided by the number of losses, so neither the world size nor padding nor packing
changes it. An evaluation changes no weight, no gradient and no generator state of training.
"""

from typing import Any

from finetune_api import finetunejob


class EarlyStopping:
    """The evaluations of a run so far; a part of every checkpoint."""

    def __init__(self, settings: finetunejob.EarlyStopping) -> None:
        self._settings = settings
        self.best_step: int | None = None
        self.best_loss: float | None = None
        self._evaluations_since_best = 0

    def should_evaluate(self, step: int, is_last: bool) -> bool:
        """Whether to evaluate after this step; always after the last one."""
        return is_last or step % self._settings.every_steps == 0

    def add_evaluation(self, step: int, loss: float) -> bool:
        """Count an evaluation, with its loss in nats; returns whether it is the best so far."""
        best = self.best_loss
        # NaN is never better.
        if loss < float("inf") and (best is None or loss < best - self._settings.min_improvement):
            self.best_step, self.best_loss, self._evaluations_since_best = step, loss, 0
            return True
        self._evaluations_since_best += 1
        return False

    @property
    def is_exhausted(self) -> bool:
        """Whether the last `patience` evaluations were no better than the best one."""
        return self._evaluations_since_best >= self._settings.patience

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "step": self.best_step,
            "loss": self.best_loss,
            "stale": self._evaluations_since_best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.best_step, self.best_loss = state["step"], state["loss"]
        self._evaluations_since_best = state["stale"]


def evaluate_held_out_loss(strategy: Any, objective: Any, device: Any) -> float:
    """Mean held-out loss over all ranks, in the objective's unit. A collective."""
    import torch
    from torch import distributed as dist

    rank_batch = objective.make_held_out_batch()
    total = torch.zeros(1, dtype=torch.float64, device=device)
    strategy.model.eval()
    with torch.no_grad():
        for micro_batch in rank_batch.micro_batches:
            # Entered for its autocast; without gradients nothing accumulates.
            with strategy.accumulate(is_last=True):
                losses = objective.compute_losses(strategy.model, micro_batch)
                total += losses.per_item.sum()
    strategy.model.train()
    # Discard the metrics of this evaluation, so that the next step reports only its own.
    objective.take_metrics()
    dist.all_reduce(total)
    return float(total) / float(rank_batch.num_items_in_batch)
