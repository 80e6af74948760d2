"""DDP: every rank holds all weights, gradients and optimizer states.

Source: Li et al. 2020 (arXiv 2006.15704).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.methods.adalora import AdaLoRAAllocator
from finetune_trainer.strategies.base import (
    Fragment,
    StateDict,
    StrategyConfig,
    trainable_parameters,
)
from finetune_trainer.strategies.loss_scale import LossScale
from finetune_trainer.strategies.optimizers import clip_and_update, make_optimizer
from finetune_trainer.strategies.state import local_state_dict, restore_scalars

ADALORA_PREFIX = "ranks/"
"""Before the names of AdaLoRA's tensors in the state_dict; part of the checkpoint format."""


class DDPStrategy:
    """Data parallelism over full replicas; a single rank needs no wrapper."""

    def __init__(self, model: Any, config: StrategyConfig) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self._config = config
        self._unwrapped = model.to(config.device)
        self.model: Any = self._unwrapped
        if dist.get_world_size() > 1:
            # No initial broadcast: every rank made the same weights from the same files and seed.
            self.model = DistributedDataParallel(
                self._unwrapped, gradient_as_bucket_view=True, init_sync=False
            )
        self.name = type(self.model).__name__
        self._optimizer = make_optimizer(self._unwrapped, config)
        self._is_fp16 = config.training.precision == "fp16"
        self._loss_scale = LossScale() if self._is_fp16 else None
        self._adalora = (
            AdaLoRAAllocator(self._unwrapped) if config.method.type == "AdaLoRA" else None
        )

    @contextlib.contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        """All-reduce gradients on the last micro-batch only."""
        config, model = self._config, self.model
        skip_sync = not is_last and model is not self._unwrapped
        with (
            model.no_sync() if skip_sync else contextlib.nullcontext(),
            torch.autocast(
                config.device.type,
                torch.float16 if self._is_fp16 else torch.bfloat16,
                enabled=config.autocast,
            ),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self._loss_scale.value if self._loss_scale else loss).backward()

    def step(self, learning_rate: float) -> float:
        weights = [weight for _, weight in trainable_parameters(self._unwrapped)]
        return clip_and_update(
            weights,
            self._optimizer,
            self._config.training.max_grad_norm,
            learning_rate,
            self._loss_scale,
            after_update=self._adalora.update_ranks if self._adalora else None,
        )

    @property
    def skipped_steps(self) -> int:
        return self._loss_scale.skipped_steps if self._loss_scale else 0

    def gather_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank has all weights already."""
        for name, weight in trainable_parameters(self._unwrapped):
            yield name, weight.detach().float()

    def state_dict(self) -> StateDict:
        """Weights, optimizer states, the loss scale, and AdaLoRA's importances."""
        state = local_state_dict(self._unwrapped, self._optimizer)
        if self._loss_scale:
            state["scale"] = Fragment(self._loss_scale.state_tensor())
        if self._adalora:
            for name, tensor in self._adalora.state_dict().items():
                state[ADALORA_PREFIX + name] = Fragment(tensor.view(-1))
        return state

    def finish_restore(self, state: StateDict) -> None:
        """Weights and moments are restored in place; scalars and AdaLoRA's tensors are copies."""
        restore_scalars(self._unwrapped, self._optimizer, state)
        if self._loss_scale:
            self._loss_scale.load_state_tensor(state["scale"].values)
        if self._adalora:
            self._adalora.load_state_dict(
                {
                    name.removeprefix(ADALORA_PREFIX): fragment.values
                    for name, fragment in state.items()
                    if name.startswith(ADALORA_PREFIX)
                }
            )

    @property
    def unwrapped_model(self) -> Any:
        return self._unwrapped

    def close(self) -> None:
        """Nothing to release: no hook outlives this object."""
