"""FSDP2: weights, gradients and optimizer states are sharded, and gathered block by block.

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
    """The model with every transformer block sharded by `fully_shard`."""

    def __init__(self, model: Any, config: StrategyConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(config.device.type, (dist.get_world_size(),))
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision_policy(config)}
        if config.offload:
            options["offload_policy"] = offload_policy(config)
        # FSDP shards ordinary parameters only; each layer keeps the meaning of its bits.
        convert_to_plain_parameters(model)
        broadcast_dtypes(model)
        # Rank 0 has loaded the weights, the other ranks have only shapes; see `load_model`.
        full = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for layer in decoder_layers(model):
            fully_shard(layer, **options)
        self.model: Any = fully_shard(model, **options)
        assert isinstance(self.model, FSDPModule)
        allocate_shards(self.model, config)
        broadcast_weights(full, self.model, config.device)
        broadcast_quant_states(self.model, config.device)
        self.name = type(self.model).__name__
        self._config = config
        self._optimizer = make_optimizer(self.model, config)
        self._loss_scale = LossScale() if config.training.precision == "fp16" else None

    @contextlib.contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        """Reduce gradients of adapters on the last micro-batch only, those of full training and of
        modulesToSave after each one: until they are reduced, every rank holds all of them."""
        lora = self._config.method.lora
        has_many = self._config.method.type == "Full" or bool(lora and lora.modules_to_save)
        self.model.set_requires_gradient_sync(is_last or has_many)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self._loss_scale.value if self._loss_scale else loss).backward()

    def step(self, learning_rate: float) -> float:
        weights = [weight for _, weight in trainable_parameters(self.model)]
        max_norm = self._config.training.max_grad_norm
        return clip_and_update(weights, self._optimizer, max_norm, learning_rate, self._loss_scale)

    @property
    def skipped_steps(self) -> int:
        return self._loss_scale.skipped_steps if self._loss_scale else 0

    def gather_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in trainable_parameters(self.model):
            yield name, weight.detach().full_tensor().float()

    def state_dict(self) -> StateDict:
        """This rank's shards of weights and optimizer states, and the loss scale."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            # A forward pass without a backward pass leaves the root's weights unsharded.
            if isinstance(module, FSDPModule):
                module.reshard()
        state = local_state_dict(self.model, self._optimizer)
        if self._loss_scale:
            state["scale"] = Fragment(self._loss_scale.state_tensor())
        return state

    def finish_restore(self, state: StateDict) -> None:
        """Weights and moments are restored in place; scalars are copies."""
        restore_scalars(self.model, self._optimizer, state)
        if self._loss_scale:
            self._loss_scale.load_state_tensor(state["scale"].values)

    @property
    def unwrapped_model(self) -> Any:
        """The model itself: FSDP2 changes its class and adds no wrapper."""
        return self.model

    def close(self) -> None:
        """Nothing to release: no hook outlives this object."""


def precision_policy(config: StrategyConfig) -> Any:
    """Full training computes in half precision on fp32 shards; adapters keep their dtypes."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    dtype = dtypes[config.training.precision]
    if dtype is None or config.method.type != "Full":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def offload_policy(config: StrategyConfig) -> Any:
    """Keep shards, their gradients and optimizer states in host memory."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    return CPUOffloadPolicy(pin_memory=config.device.type == "cuda")


def allocate_shards(model: Any, config: StrategyConfig) -> None:
    """Allocate memory for this rank's shards, and for its buffers, which are not sharded."""
    model.to_empty(device="cpu" if config.offload else config.device)
    if config.offload and config.device.type != "cpu":
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(config.device)


def convert_to_plain_parameters(model: Any) -> None:
    """Replace bitsandbytes' Params4bit by ordinary parameters over the same packed bits; the
    layers read the bits from them."""
    for _, layer in four_bit_layers(model):
        layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)


def broadcast_dtypes(model: Any) -> None:
    """Cast this rank's weights to rank 0's dtypes: transformers keeps a few weights of some
    architectures in fp32, but only where it reads them from files."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtypes = collectives.broadcast_from_rank_zero(
        {name: each.dtype for name, each in tensors.items()}
    )
    for name, each in tensors.items():
        each.data = each.data.to(dtypes[name])


def broadcast_quant_states(model: Any, device: torch.device) -> None:
    """Copy the scales of rank 0's four-bit layers, which every rank needs unsharded."""
    for _, layer in four_bit_layers(model):
        holder = [layer.quant_state]
        dist.broadcast_object_list(holder, src=0)
        layer.quant_state = holder[0]
        layer.quant_state.to(device)


def broadcast_weights(full: dict[str, torch.Tensor], model: Any, device: torch.device) -> None:
    """Copy rank 0's weights to each rank's shards, and its buffers to all ranks, one by one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    collectives.barrier()
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        local = weight.detach()
        # .shape of a DTensor is that of the full tensor.
        sent = torch.empty(local.shape, dtype=local.dtype, device=device)
        if dist.get_rank() == 0:
            sent.copy_(full.pop(name).detach())
        dist.broadcast(sent, src=0)
        if isinstance(local, DTensor):
            mesh, placements = local.device_mesh, local.placements
            shards = distribute_tensor(sent, mesh, placements, src_data_rank=None)
            local.to_local().copy_(shards.to_local())
        else:
            local.copy_(sent)
