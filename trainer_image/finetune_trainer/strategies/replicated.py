"""DDP: every rank holds everything."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.strategies.base import Spread, trained
from finetune_trainer.strategies.optimizers import make_optimizer, set_learning_rate


class Replicated:
    """DDP: every rank holds everything; with one rank the model needs no wrapper."""

    def __init__(self, model: Any, spread: Spread) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self._bare = model.to(spread.device)
        self._spread = spread
        self.model: Any = self._bare
        if dist.get_world_size() > 1:
            # Every rank made the same weights from the same files and seed.
            self.model = DistributedDataParallel(
                self._bare, gradient_as_bucket_view=True, init_sync=False
            )
        self.name = type(self.model).__name__
        self._optimizer = make_optimizer(self._bare, spread)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Ranks exchange gradients on the last micro-batch only."""
        spread, model = self._spread, self.model
        quiet = not last and model is not self._bare
        with (
            model.no_sync() if quiet else contextlib.nullcontext(),
            torch.autocast(spread.device.type, torch.bfloat16, enabled=spread.autocast),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trained(self._bare)]
        norm = torch.nn.utils.clip_grad_norm_(weights, self._spread.training.max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Nothing to gather."""
        for name, weight in trained(self._bare):
            yield name, weight.detach().float()

    def save(self, folder: Path) -> None:
        """Rank 0 has it all."""
        if dist.get_rank() == 0:
            weights = {name: weight.detach() for name, weight in trained(self._bare)}
            state = {"weights": weights, "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Every rank reads the one file."""
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, weight in trained(self._bare):
                weight.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    @property
    def bare(self) -> Any:
        """The model itself."""
        return self._bare

    def close(self) -> None:
        """Nothing outlives the object."""
