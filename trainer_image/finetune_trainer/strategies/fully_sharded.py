"""FSDP2: weights, gradients and optimizer states sharded, gathered layer by layer.

Source: Zhao et al. 2023 (arXiv 2304.11277).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer import waiting
from finetune_trainer.strategies.base import Spread, trained
from finetune_trainer.strategies.optimizers import make_optimizer, set_learning_rate


class FullyShardedData:
    """FSDP2: weights, gradients and optimizer sharded, gathered layer by layer."""

    def __init__(self, model: Any, spread: Spread) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(spread.device.type, (dist.get_world_size(),))
        mixed = spread.method.type == "Full" and spread.training.precision == "bf16"
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if mixed
            else MixedPrecisionPolicy()
        )
        # Rank 0 has the weights, the others only their shapes; see `load`.
        whole = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        self.model: Any = fully_shard(model, mesh=mesh, mp_policy=policy)
        assert isinstance(self.model, FSDPModule)
        self.model.to_empty(device=spread.device)
        hand_out(whole, self.model, spread.device)
        self.name = type(self.model).__name__
        self._spread = spread
        self._optimizer = make_optimizer(self.model, spread)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Adapters' gradients are reduced on the last micro-batch only; a whole model's after
        each one, because until then every rank holds all of them."""
        self.model.set_requires_gradient_sync(last or self._spread.method.type == "Full")
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trained(self.model)]
        norm: Any = torch.nn.utils.clip_grad_norm_(weights, self._spread.training.max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather one weight at a time."""
        for name, weight in trained(self.model):
            yield name, weight.detach().full_tensor().float()

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(ignore_frozen_params=True)
        weights, optimizer = get_state_dict(self.model, self._optimizer, options=options)
        return {"weights": weights, "optimizer": optimizer}

    def save(self, folder: Path) -> None:
        """Every rank writes its shards."""
        from torch.distributed import checkpoint as dcp

        dcp.save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Every rank reads its shards."""
        from torch.distributed import checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )

    @property
    def bare(self) -> Any:
        """The model itself: FSDP2 changes its class and wraps nothing."""
        return self.model

    def close(self) -> None:
        """Nothing outlives the object."""


def hand_out(whole: dict[str, torch.Tensor], model: Any, device: torch.device) -> None:
    """Give every rank its shards of rank 0's weights, and all of its buffers, one by one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    waiting.barrier()
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        here = weight.detach()
        sent = torch.empty(here.shape, dtype=here.dtype, device=device)
        if dist.get_rank() == 0:
            sent.copy_(whole.pop(name).detach())
        dist.broadcast(sent, src=0)
        if isinstance(here, DTensor):
            mesh, placements = here.device_mesh, here.placements
            shards = distribute_tensor(sent, mesh, placements, src_data_rank=None)
            here.to_local().copy_(shards.to_local())
        else:
            here.copy_(sent)


def decoder_layers(model: Any) -> list[Any]:
    """The transformer blocks, by the class names that the architecture declares."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(inner).__name__} declares no decoder layers to shard")
    return layers
