"""FSDP2: weights, gradients and optimizer states sharded, gathered layer by layer.

Source: Zhao et al. 2023 (arXiv 2304.11277).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.distributed import collectives
from finetune_trainer.methods.quantization import four_bit_layers
from finetune_trainer.strategies.base import (
    Fragment,
    StateDict,
    StrategyConfig,
    decoder_layers,
    trainable_parameters,
)
from finetune_trainer.strategies.loss_scale import LossScale
from finetune_trainer.strategies.optimizers import clip_and_update, make_optimizer
from finetune_trainer.strategies.state import local_state_dict, restore_scalars


class FSDPStrategy:
    """FSDP2: weights, gradients and optimizer sharded, gathered layer by layer."""

    def __init__(self, model: Any, spread: StrategyConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(spread.device.type, (dist.get_world_size(),))
        how: dict[str, Any] = {"mesh": mesh, "mp_policy": precision_policy(spread)}
        if spread.offload:
            how["offload_policy"] = offload_policy(spread)
        # FSDP knows ordinary weights only; the layers know what their bits mean.
        convert_to_plain_parameters(model)
        broadcast_dtypes(model)
        # Rank 0 has the weights, the others only their shapes; see `load`.
        whole = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for layer in decoder_layers(model):
            fully_shard(layer, **how)
        self.model: Any = fully_shard(model, **how)
        assert isinstance(self.model, FSDPModule)
        allocate_shards(self.model, spread)
        broadcast_weights(whole, self.model, spread.device)
        broadcast_quant_states(self.model, spread.device)
        self.name = type(self.model).__name__
        self._spread = spread
        self._optimizer = make_optimizer(self.model, spread)
        self._scale = LossScale() if spread.training.precision == "fp16" else None

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Adapters' gradients are reduced on the last micro-batch only; a whole model's after
        each one, because until then every rank holds all of them."""
        self.model.set_requires_gradient_sync(last or self._spread.method.type == "Full")
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        (loss * self._scale.value if self._scale else loss).backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trainable_parameters(self.model)]
        most = self._spread.training.max_grad_norm
        return clip_and_update(weights, self._optimizer, most, learning_rate, self._scale)

    @property
    def skipped(self) -> int:
        """Steps left out."""
        return self._scale.skipped if self._scale else 0

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather one weight at a time."""
        for name, weight in trainable_parameters(self.model):
            yield name, weight.detach().full_tensor().float()

    def state(self) -> StateDict:
        """What the optimizer works on, and its own states."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            # After a forward pass without a backward one the outermost weights are still whole.
            if isinstance(module, FSDPModule):
                module.reshard()
        state = local_state_dict(self.model, self._optimizer)
        return {**state, "scale": Fragment(self._scale.state())} if self._scale else state

    def restored(self, state: StateDict) -> None:
        """Weights and moments are there; numbers follow."""
        restore_scalars(self.model, self._optimizer, state)
        if self._scale:
            self._scale.restore(state["scale"].values)

    @property
    def bare(self) -> Any:
        """The model itself: FSDP2 changes its class and wraps nothing."""
        return self.model

    def close(self) -> None:
        """Nothing outlives the object."""


def precision_policy(spread: StrategyConfig) -> Any:
    """A whole model computes in half precision on fp32 shards; adapters' numbers stay."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    computed = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    dtype = computed[spread.training.precision]
    if dtype is None or spread.method.type != "Full":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def offload_policy(spread: StrategyConfig) -> Any:
    """Shards, their gradients and the optimizer live in host memory."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    return CPUOffloadPolicy(pin_memory=spread.device.type == "cuda")


def allocate_shards(model: Any, spread: StrategyConfig) -> None:
    """Memory for this rank's shards, and for its buffers, which are not sharded."""
    model.to_empty(device="cpu" if spread.offload else spread.device)
    if spread.offload and spread.device.type != "cpu":
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(spread.device)


def convert_to_plain_parameters(model: Any) -> None:
    """Weights in four bits as ordinary parameters, which bitsandbytes takes them from again."""
    for _, layer in four_bit_layers(model):
        layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)


def broadcast_dtypes(model: Any) -> None:
    """Give every rank's weights the number formats of rank 0: some architectures keep a few in
    fp32, which the library knows only where it reads them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    formats = collectives.from_rank_zero({name: each.dtype for name, each in tensors.items()})
    for name, each in tensors.items():
        each.data = each.data.to(formats[name])


def broadcast_quant_states(model: Any, device: torch.device) -> None:
    """Give every rank what rank 0 knows of its bits: scales are needed whole everywhere."""
    for _, layer in four_bit_layers(model):
        told = [layer.quant_state]
        dist.broadcast_object_list(told, src=0)
        layer.quant_state = told[0]
        layer.quant_state.to(device)


def broadcast_weights(whole: dict[str, torch.Tensor], model: Any, device: torch.device) -> None:
    """Give every rank its shards of rank 0's weights, and all of its buffers, one by one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    collectives.barrier()
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
