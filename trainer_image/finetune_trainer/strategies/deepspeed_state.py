"""A rank's shard of weights and optimizer states inside DeepSpeed's ZeRO optimizers.

The optimizer of every stage updates flat fp32 partitions, in which copies of weights, or of parts
of them, are concatenated. Stages 1 and 2 concatenate all weights and split the result into equal
partitions, so a partition may begin or end inside a weight. Stage 3 splits each weight by itself.
AdamW is the only optimizer that runs under ZeRO.
"""

from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.strategies.base import Fragment, StateDict, trainable_parameters
from finetune_trainer.strategies.state import init_optimizer_states

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Attributes of DeepSpeed's dynamic loss scaler that change during a run."""


def zero_state_dict(engine: Any) -> StateDict:
    """This rank's partitions as fragments of the trainable parameters."""
    zero = engine.optimizer
    init_partition_states(zero)
    is_stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    state = (shard_fragments if is_stage_3 else partition_fragments)(engine, zero)
    # Every parameter has had the same number of updates.
    step = float(next(iter(zero.optimizer.state.values()))["step"])
    state["step"] = Fragment(torch.tensor([step], dtype=torch.float64))
    if scaler := dynamic_loss_scaler(zero):
        values = [float(getattr(scaler, name)) for name in SCALER_FIELDS]
        state["scaler"] = Fragment(torch.tensor(values, dtype=torch.float64))
    return state


def refresh_engine(engine: Any, state: StateDict) -> None:
    """Copy partitions that the caller has overwritten to the engine's other copies."""
    zero = engine.optimizer
    step = state["step"].values.item()
    for optimizer_state in zero.optimizer.state.values():
        optimizer_state["step"] = optimizer_state["step"] * 0 + int(step)
    if scaler := dynamic_loss_scaler(zero):
        for name, value in zip(SCALER_FIELDS, state["scaler"].values.tolist(), strict=True):
            setattr(scaler, name, type(getattr(scaler, name))(value))
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        refresh_shards(zero)
    else:
        zero.update_lp_params()


def fp32_partitions(zero: Any) -> list[torch.Tensor]:
    """The flat fp32 partitions of this rank."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    return list(zero.fp32_groups_flat_partition)


def init_partition_states(zero: Any) -> None:
    """Let AdamW create its states for all partitions.

    Stage 3 puts partitions into AdamW's parameter groups only during a step, so this puts them
    there for a moment.
    """
    inner, flats = zero.optimizer, fp32_partitions(zero)
    original = [group["params"] for group in inner.param_groups]
    for index, group in enumerate(inner.param_groups):
        group["params"] = flats if index == 0 else []
    init_optimizer_states(inner, flats)
    for group, params in zip(inner.param_groups, original, strict=True):
        group["params"] = params


def partition_fragments(engine: Any, zero: Any) -> StateDict:
    """Stages 1 and 2: the elements of each parameter that lie in this rank's partition."""
    zero._lazy_init_hp_params_optimizer_state()
    state: StateDict = {}
    for name, weight in trainable_parameters(engine.module):
        mapping = weight._hp_mapping
        if mapping is None:
            continue
        start = mapping.lp_fragment_address.start
        tensors = {
            "weight": mapping.hp_fragment,
            **{key: mapping.optim_fragment[key] for key in MOMENTS},
        }
        for kind, values in tensors.items():
            state[f"{kind}/{name}"] = Fragment(values.detach(), start, is_replicated=False)
    return state


def shard_fragments(engine: Any, zero: Any) -> StateDict:
    """Stage 3: this rank's shard of each parameter, without the padding of the last rank."""
    flats, rank = fp32_partitions(zero), dist.get_rank()
    state: StateDict = {}
    for name, weight in trainable_parameters(engine.module):
        group, offset, _ = zero.grad_position[zero.get_param_id(weight)]
        start = rank * weight.ds_tensor.ds_numel
        count = min(weight.ds_tensor.ds_numel, weight.ds_numel - start)
        if count <= 0:
            continue
        flat = flats[group]
        tensors = {"weight": flat, **{key: zero.optimizer.state[flat][key] for key in MOMENTS}}
        for kind, values in tensors.items():
            shard = values.detach().narrow(0, offset, count)  # [count]
            state[f"{kind}/{name}"] = Fragment(shard, start, is_replicated=False)
    return state


def refresh_shards(zero: Any) -> None:
    """Stage 3: copy the fp32 partitions to the shards that the forward pass gathers."""
    zero.checkpoint_event_prologue()
    for index, flat in enumerate(fp32_partitions(zero)):
        if not flat.numel():
            continue
        zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
        shards = zero.fp16_partitioned_groups[index]
        refreshed = zero.unflatten(zero.fp16_partitioned_groups_flat[index], shards)
        for shard, values in zip(shards, refreshed, strict=True):
            shard.data = values.data
    zero.checkpoint_event_epilogue()


def dynamic_loss_scaler(zero: Any) -> Any:
    """The dynamic loss scaler of an fp16 run, else None."""
    return zero.loss_scaler if getattr(zero, "dynamic_loss_scale", False) else None
