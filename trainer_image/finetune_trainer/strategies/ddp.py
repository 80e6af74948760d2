"""DDP: every rank holds everything."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.methods.adalora import AdaLoRA
from finetune_trainer.strategies.base import (
    Fragment,
    StateDict,
    StrategyConfig,
    trainable_parameters,
)
from finetune_trainer.strategies.loss_scale import LossScale
from finetune_trainer.strategies.optimizers import clip_and_update, make_optimizer
from finetune_trainer.strategies.state import local_state_dict, restore_scalars


class DDPStrategy:
    """DDP: every rank holds everything; with one rank the model needs no wrapper."""

    def __init__(self, model: Any, spread: StrategyConfig) -> None:
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
        self._half = spread.training.precision == "fp16"
        self._scale = LossScale() if self._half else None
        adaptive = spread.method.type == "AdaLoRA"
        self._ranks = AdaLoRA(self._bare) if adaptive else None

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Ranks exchange gradients on the last micro-batch only."""
        spread, model = self._spread, self.model
        quiet = not last and model is not self._bare
        with (
            model.no_sync() if quiet else contextlib.nullcontext(),
            torch.autocast(
                spread.device.type,
                torch.float16 if self._half else torch.bfloat16,
                enabled=spread.autocast,
            ),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        (loss * self._scale.value if self._scale else loss).backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trainable_parameters(self._bare)]
        most = self._spread.training.max_grad_norm
        after = self._ranks.after_step if self._ranks else None
        return clip_and_update(weights, self._optimizer, most, learning_rate, self._scale, after)

    @property
    def skipped(self) -> int:
        """Steps left out."""
        return self._scale.skipped if self._scale else 0

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Nothing to gather."""
        for name, weight in trainable_parameters(self._bare):
            yield name, weight.detach().float()

    def state(self) -> StateDict:
        """What the optimizer works on, and its own states."""
        state = local_state_dict(self._bare, self._optimizer)
        if self._scale:
            state["scale"] = Fragment(self._scale.state())
        if self._ranks:
            told = self._ranks.state()
            state |= {f"ranks/{name}": Fragment(each.view(-1)) for name, each in told.items()}
        return state

    def restored(self, state: StateDict) -> None:
        """Weights and moments are there; numbers follow."""
        restore_scalars(self._bare, self._optimizer, state)
        if self._scale:
            self._scale.restore(state["scale"].values)
        if self._ranks:
            told = {name: part.values for name, part in state.items() if name.startswith("ranks/")}
            self._ranks.restore({name.removeprefix("ranks/"): told[name] for name in told})

    @property
    def bare(self) -> Any:
        """The model itself."""
        return self._bare

    def close(self) -> None:
        """Nothing outlives the object."""
